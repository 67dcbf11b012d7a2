"""From a configuration to the parts of a compiled step, without data.

    config, sizes of the CLIP tower, text of the classes ─▶ StepModules ─▶ TrainState

Everything also works with shapes alone (`jax.eval_shape`), so a step can be compiled for other machines.
`experiment` adds data, schedule and mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from semivl_jax.models import build
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.train import methods, optimizer, param_groups
from semivl_jax.train import state as state_lib
from semivl_jax.train.methods.base import Setup, Trained
from semivl_jax.train.step import StepModules
from semivl_jax.types import Batch, ClassText, ImageBatch, LabelledBatch, PyTree


def base_lr(config: ConfigDict) -> float:
    """Learning rate before group multipliers, scaled by `optim.lr_scaling`."""
    share = config.batch / config.optim.published_batch
    return config.optim.lr * (share if config.optim.lr_scaling == "linear" else 1.0)


def build_modules(
    config: ConfigDict,
    *,
    num_classes: int,
    clip_sizes: dict[str, Any],
    text: ClassText | None,
    total_steps: int,
    load: Callable[[str], Trained] | None = None,
) -> tuple[StepModules, PyTree]:
    """Model, method and optimiser of a training, and the variables of the method's own frozen networks.

    `text` describes the classes; None for a model without text. `load` as of `Setup`.

    Raises:
      ValueError: a model with BatchNorm and accumulation, or a trained run that the method cannot use.
    """
    model = build.segmenter(config, num_classes=num_classes, clip_sizes=clip_sizes)
    method = methods.create(config.method)
    groups = param_groups.published_groups(
        finetune=config.model.finetune,
        backbone_lr=config.optim.backbone_lr,
        conv_encoder_lr=config.optim.conv_encoder_lr,
        decoder_lr=config.optim.decoder_lr,
        frozen_clip=config.model.similarity == "clip",
    )
    schedule = optimizer.polynomial_schedule(
        lr=base_lr(config),
        total_steps=total_steps,
        power=config.optim.power,
        warmup_steps=config.optim.warmup_steps,
    )
    setup = Setup(model=model, num_classes=num_classes, load=load)
    method_modules, method_variables = method.networks(setup)
    shapes = jax.eval_shape(lambda: init_variables(model, text, config.seed))
    _check_batch_norm(config.accumulation, shapes["batch_stats"])
    params, _ = param_groups.partition(shapes["params"], groups)
    own_params, _ = jax.eval_shape(
        lambda: method.init(
            jax.random.key(config.seed), Setup(model=model, num_classes=num_classes)
        )
    )
    modules = StepModules(
        model=model,
        method=method,
        optimizer=optimizer.build(
            _with_own(params, own_params),
            groups,
            schedule,
            name=config.optim.name,
            weight_decay=config.optim.weight_decay,
        ),
        total_steps=total_steps,
        num_classes=num_classes,
        seed=config.seed,
        accumulation=config.accumulation,
        guidance_model=build.guidance(config, clip_sizes) if method.guided else None,
        method_modules=method_modules,
        groups=groups,
        schedule=schedule,
    )
    return modules, method_variables


def _check_batch_norm(accumulation: int, batch_stats: PyTree) -> None:
    if accumulation > 1 and batch_stats:
        raise ValueError(
            f"accumulation = {accumulation} would normalise every part of the batch by itself in "
            f"{' and '.join(batch_stats)}, which has BatchNorm; set accumulation = 1 and use more "
            "devices, or choose a model without it"
        )


def create_state(
    modules: StepModules, text: ClassText | None, start: PyTree | None
) -> state_lib.TrainState:
    """State before the first step.

    `start` holds initial variables, {"params": {part: …}, "batch_stats": {part: …}}. What it lacks is
    initialised: whole parts, or the prompts of a CLIP tower.
    """
    fresh, start = init_variables(modules.model, text, modules.seed), start or {}
    variables = {
        name: param_groups.merge(tree, start.get(name, {})) for name, tree in fresh.items()
    }
    params, frozen_params = param_groups.partition(variables["params"], modules.groups)
    key = jax.random.fold_in(jax.random.key(modules.seed), 1)
    own_params, own_state = modules.method.init(key, modules.setup)
    return state_lib.create(
        _with_own(params, own_params),
        frozen_params,
        variables["batch_stats"],
        modules.optimizer,
        ema=modules.method.decay is not None,
        method=own_state,
    )


def _with_own(params: PyTree, own: PyTree) -> PyTree:
    """Trained parameters, and the method's as a part of their own."""
    return {**params, "method": own} if own else params


def cast(tree: PyTree, dtype: str) -> PyTree:
    """All (abstract) leaves with this dtype."""

    def leaf_as(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=jnp.dtype(dtype))
        return leaf.astype(dtype)

    return jax.tree.map(leaf_as, tree)


def abstract_batch(config: ConfigDict) -> Batch:
    """Shapes and dtypes of one global batch as the pipeline would send it."""
    b, s = config.batch, config.data.crop
    image = jax.ShapeDtypeStruct((b, s, s, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((b, s, s), jnp.uint8)
    size = jax.ShapeDtypeStruct((b, 2), jnp.int32)
    streams = {
        key: ImageBatch(image=image, size=size, label=label if stream.labels else None)
        for stream in methods.create(config.method).streams
        for key in stream.keys
    }
    return Batch(labelled=LabelledBatch(image=image, label=label), streams=streams)


@functools.partial(jax.jit, static_argnames=("model", "seed"))
def init_variables(model: SegmentationModel, text: ClassText | None, seed: int) -> PyTree:
    """{"params", "batch_stats"} of an initialised model; traced once for equal models."""
    image = jnp.zeros((1, model.crop, model.crop, 3))
    # "rbg" compiles to far less code than the default generator, once per leaf.
    variables = model.init(jax.random.key(seed, impl="rbg"), image, text)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
