"""The whole step with shapes only (`--mode=check`): parameters, memory and cost of a run.

Nothing is computed, and neither weights nor a public data set need exist. The step is traced with abstract
arrays, so a wrong shape is an error as it would be in training.
"""

from __future__ import annotations

import math
from collections import Counter

import jax
from jax.stages import Compiled, Traced

from semivl_jax.experiment import build_step, flops
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.train import param_groups as groups_lib
from semivl_jax.train import sharding
from semivl_jax.train import step as step_lib
from semivl_jax.train.augment.views import make_views
from semivl_jax.types import Batch, PyTree
from semivl_jax.weights.tree import flatten

_GIB = 2**30


def report(experiment: Experiment, *, compiled: bool = False) -> str:
    """Parameters, memory, cost and length of the run, from tracing the step.

    With `compiled` also what the compiler of the present devices says about its memory.
    """
    config, state = experiment.config, experiment.abstract_state()
    batch, mesh = experiment.abstract_batch(), experiment.mesh
    step = step_lib.jit_train_step(experiment.modules, mesh, state)
    traced = step.trace(experiment.frozen, state, batch)
    params = groups_lib.merge(state.params, state.frozen_params)
    table = groups_lib.parameter_table(
        params,
        experiment.modules.groups,
        lr=build_step.base_lr(config),
        decay=config.optim.weight_decay,
    )
    sizes = {
        "parameters": parameter_bytes(params),
        "optimiser": parameter_bytes(state.opt_state),
        "EMA": parameter_bytes((state.ema_params, state.ema_batch_stats)),
        "gradients": parameter_bytes(state.params),
        "frozen CLIP and text": parameter_bytes(experiment.frozen),
    }
    images_kept = parameter_bytes(batch)
    backward = _residual_bytes(experiment, state, batch)
    sizes |= {"batch": images_kept, "for the backward pass": backward}
    per_device = sharding.bytes_at_rest(mesh, (state, experiment.frozen)) + sizes["gradients"]
    if mesh.shape["fsdp"] > 1:  # split arrays are gathered within a step
        per_device += sizes["parameters"] + sizes["EMA"] + sizes["frozen CLIP and text"]
    per_device += (images_kept + backward / config.accumulation) / sharding.batch_shards(mesh)
    length = experiment.schedule.total_steps
    images = " + ".join([str(config.batch)] * (1 + len(experiment.modules.method.streams)))
    lines = [
        _modules(params),
        "",
        table,
        "",
        *(_size(name, size) for name, size in sizes.items()),
        _size("sum on each device", per_device),
        "for the backward pass: all arrays that the forward pass leaves, before XLA fuses and recomputes",
        f"what the compiler needs: {_memory_of_compiler(traced) if compiled else 'add --compile'}",
        "",
        f"{flops.of_traced(traced) / 1e9:,.1f} GFLOP per step in products and convolutions, "
        f"{length:,} steps of {images} images, "
        f"{len(experiment.schedule.evaluation_steps | {length})} evaluations",
        f"learning rate {build_step.base_lr(config):g} (published: {config.optim.lr:g} at batch "
        f"{config.optim.published_batch}; optim.lr_scaling = {config.optim.lr_scaling})",
        f"devices: {hardware(experiment.mesh)}",
    ]
    return "\n".join(lines)


def hardware(mesh: jax.sharding.Mesh) -> str:
    """Number and kind of the devices that train: "8 x TPU v5 lite"."""
    return f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"


def _modules(params: PyTree) -> str:
    """Leaves and parameters of the modules, two levels deep; a tower alone has hundreds of leaves."""
    leaves: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for path, leaf in flatten(params).items():
        name = "/".join(path.split("/")[:2])
        leaves[name] += 1
        parameters[name] += leaf.size
    width = max(map(len, leaves))
    rows = [f"{name:<{width}}{leaves[name]:>8}{parameters[name]:>14,}" for name in leaves]
    return "\n".join([f"{'module':<{width}}{'leaves':>8}{'parameters':>14}", *rows])


def parameter_bytes(tree: PyTree) -> int:
    """Memory of the leaves of a tree of (abstract) arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size(name: str, size: float) -> str:
    return f"{name:<28}{size / _GIB:8.3f} GiB"


def _residual_bytes(experiment: Experiment, state: PyTree, batch: Batch) -> int:
    """Arrays that the forward pass of the student leaves for the backward pass.

    An upper bound: XLA may recompute or fuse some of them away.
    """
    modules = experiment.modules

    def residuals(frozen: PyTree, state: PyTree, batch: Batch) -> PyTree:
        views = modules.method.views(jax.random.key(0), make_views(jax.random.key(0), batch))
        loss = step_lib.student_loss(modules, frozen, state, views, jax.random.key(0))
        return jax.vjp(lambda params: loss.of_part(params, loss.part)[0], state.params)[1]

    # On the step's mesh, so that cached traces of the step are reused.
    residuals = sharding.on_mesh(residuals, experiment.mesh)
    return parameter_bytes(jax.eval_shape(residuals, experiment.frozen, state, batch))


def _memory_of_compiler(traced: Traced) -> str:
    """What the compiler of the present devices says about a step."""
    kind = jax.devices()[0].device_kind
    try:
        step = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return (
            f"more than {kind} has ({next(iter(str(error).splitlines()))}); see docs/performance.md"
        )
    if step.memory_analysis() is None:
        return f"the one for {kind} does not say"
    return f"{compiled_cost(step)} (for {kind})"


def compiled_cost(step: Compiled) -> str:
    """Operations and memory of a compiled step as text, as far as the backend reports them."""
    parts = []
    operations = (step.cost_analysis() or {}).get("flops", 0.0)
    if operations > 0:
        parts.append(f"{operations / 1e9:,.4g} GFLOP")
    memory = step.memory_analysis()
    if memory is not None:
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        total += memory.output_size_in_bytes - memory.alias_size_in_bytes
        parts.append(
            f"{total / _GIB:.3g} GiB per device, {memory.temp_size_in_bytes / _GIB:.3g} of them temporary"
        )
    return "compiled" + "".join(f"; {part}" for part in parts)
