"""The whole step with shapes only: what a run would take, before anyone pays for it.

Nothing is computed, and neither the weights nor a public data set has to be there; the step is traced
with abstract arrays, so a wrong shape anywhere fails here as it would in training.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
from clu import parameter_overview
from jaxtyping import Array

from semivl_jax.experiment import flops, step_modules
from semivl_jax.experiment.experiment import Experiment, parameter_bytes
from semivl_jax.train import forward as student_lib
from semivl_jax.train import param_groups as groups_lib
from semivl_jax.train import sharding
from semivl_jax.train import step as step_lib
from semivl_jax.types import Batch, PyTree
from semivl_jax.weights.tree import flatten

_GIB = 2**30


def report(experiment: Experiment) -> str:
    """Traces the step and writes down parameters, sizes, cost and length of the run."""
    config, state = experiment.config, experiment.abstract_state()
    batch, mesh = experiment.abstract_batch(), experiment.mesh
    step = functools.partial(step_lib.train_step, experiment.parts)
    step = sharding.on_mesh(step, mesh)
    traced = jax.jit(step).trace(experiment.constants, state, batch)
    params = groups_lib.merge(state.trained, state.frozen)
    table = groups_lib.parameter_table(
        params,
        experiment.parts.groups,
        lr=step_modules.base_lr(config),
        decay=config.optim.weight_decay,
    )
    sizes = {
        "parameters": parameter_bytes(params),
        "optimiser": parameter_bytes(state.opt_state),
        "average (EMA)": parameter_bytes((state.ema, state.ema_batch_stats)),
        "gradients": parameter_bytes(state.trained),
        "frozen CLIP and text": parameter_bytes(experiment.constants),
    }
    images_kept = parameter_bytes(batch)
    backward = _residual_bytes(experiment, state, batch)
    sizes |= {"batch": images_kept, "for the backward, at most": backward}
    devices = mesh.size
    per_device = sharding.bytes_at_rest(mesh, (state, experiment.constants)) + sizes["gradients"]
    if mesh.shape["fsdp"] > 1:  # what rests in pieces is there as a whole while a step uses it
        per_device += sizes["parameters"] + sizes["average (EMA)"] + sizes["frozen CLIP and text"]
    per_device += (images_kept + backward / config.accumulation) / sharding.batch_shards(mesh)
    length = experiment.clock.total_steps
    images = f"{config.batch} + {config.batch}" if batch.streams else config.batch
    lines = [
        _modules(params),
        "",
        table,
        "",
        *(_size(name, size) for name, size in sizes.items()),
        _size("on each device, at most", per_device),
        "what is kept for the backward pass is an upper bound: XLA recomputes and fuses much of it",
        "",
        f"{flops.of_traced(traced) / 1e9:,.1f} GFLOP per step in products and convolutions, "
        f"{length:,} steps of {images} images, "
        f"{len(experiment.clock.evaluation_steps | {length})} evaluations",
        f"learning rate {step_modules.base_lr(config):g} (published: {config.optim.lr:g} at batch "
        f"{config.optim.published_batch}; optim.lr_scaling = {config.optim.lr_scaling})",
        f"{devices} device(s): {experiment.mesh.devices.flat[0].device_kind}",
    ]
    return "\n".join(lines)


@dataclasses.dataclass
class _Module:
    """A row of the table of modules."""

    module: str
    leaves: int = 0
    parameters: int = 0


def _modules(params: PyTree) -> str:
    """Leaves and parameters of the modules, two levels deep; a tower alone has hundreds of leaves."""
    rows: dict[str, _Module] = {}
    for path, leaf in flatten(params).items():
        name = "/".join(path.split("/")[:2])
        row = rows.setdefault(name, _Module(name))
        row.leaves += 1
        row.parameters += leaf.size
    return parameter_overview.make_table(list(rows.values()))


def _size(name: str, size: float) -> str:
    return f"{name:<28}{size / _GIB:8.3f} GiB"


def _residual_bytes(experiment: Experiment, state: PyTree, batch: Batch) -> int:
    """Arrays that the forward pass of the student leaves for the backward pass.

    An upper bound: XLA may recompute or fuse some of them away.
    """
    parts = experiment.parts

    def residuals(constants: PyTree, state: PyTree, batch: Batch) -> PyTree:
        views, noise = step_lib.draw(parts, state, batch)

        def forward(trained: PyTree) -> Array:
            return student_lib.student_forward(parts, constants, state, trained, views, noise)[0]

        return jax.vjp(forward, state.trained)[1]

    # On the step's mesh, so that what was traced for the step is found again.
    residuals = sharding.on_mesh(residuals, experiment.mesh)
    return parameter_bytes(jax.eval_shape(residuals, experiment.constants, state, batch))
