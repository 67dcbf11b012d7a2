"""From a configuration to what a compiled step is made of, without any data.

    config, sizes of the CLIP tower, text of the classes ─▶ Parts ─▶ state

Everything works with shapes alone too (`jax.eval_shape`), so a step can be traced and compiled for machines
that are not there. `experiment` adds data, clock and mesh.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from semivl_jax.models import build
from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.train import optimizer
from semivl_jax.train import param_groups as groups_lib
from semivl_jax.train import state as state_lib
from semivl_jax.train.recipe import Parts, Recipe
from semivl_jax.types import Batch, ClassText, LabelledBatch, PyTree, UnlabelledBatch


def guided(config: ConfigDict) -> bool:
    """Whether the frozen CLIP labels the unlabelled images."""
    return config.method.semi_supervised and config.method.guidance


def base_lr(config: ConfigDict) -> float:
    """Learning rate before the multipliers of the groups, after the rule for other batch sizes."""
    share = config.batch / config.optim.published_batch
    return config.optim.lr * (share if config.optim.lr_scaling == "linear" else 1.0)


def build_parts(
    config: ConfigDict,
    *,
    num_classes: int,
    clip_sizes: dict[str, Any],
    text: ClassText | None,
    total_steps: int,
) -> Parts:
    """Model, optimiser and recipe of a training of so many steps.

    `text` describes the classes; None where nothing reads words. ValueError for a model with BatchNorm
    whose batch is to be computed in parts.
    """
    segmenter = build.segmenter(config, num_classes=num_classes, clip_sizes=clip_sizes)
    groups = groups_lib.published_groups(
        finetune=config.model.finetune,
        backbone_lr=config.optim.backbone_lr,
        conv_encoder_lr=config.optim.conv_encoder_lr,
        decoder_lr=config.optim.decoder_lr,
    )
    schedule = optimizer.polynomial_schedule(
        lr=base_lr(config),
        total_steps=total_steps,
        power=config.optim.power,
        warmup_steps=config.optim.warmup_steps,
    )
    return Parts(
        segmenter=segmenter,
        optimizer=_optimizer(config, segmenter, text, groups, schedule),
        recipe=Recipe(
            total_steps=total_steps,
            seed=config.seed,
            accumulation=config.accumulation,
            **config.method,
        ),
        guidance_tower=build.guidance_tower(config, clip_sizes) if guided(config) else None,
        groups=groups,
        schedule=schedule,
    )


def create_state(
    parts: Parts, text: ClassText | None, start: PyTree | None
) -> state_lib.TrainState:
    """State before the first step.

    `start` holds variables to begin with: {"params": {part: …}, "batch_stats": {part: …}}. What it lacks is
    drawn: whole parts, or the prompts of a CLIP tower.
    """
    drawn, start = init_variables(parts.segmenter, text, parts.recipe.seed), start or {}
    variables = {name: groups_lib.merge(tree, start.get(name, {})) for name, tree in drawn.items()}
    trained, frozen = groups_lib.partition(variables["params"], parts.groups)
    state = state_lib.create(
        trained,
        frozen,
        variables["batch_stats"],
        parts.optimizer,
        ema=parts.recipe.semi_supervised and parts.recipe.teacher == "ema",
    )
    return state.replace(ema=cast(state.ema, parts.recipe.ema_dtype))


def cast(tree: PyTree, dtype: str) -> PyTree:
    """Weights as they are stored: all (abstract) leaves with this dtype."""

    def leaf_as(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=jnp.dtype(dtype))
        return leaf.astype(dtype)

    return jax.tree.map(leaf_as, tree)


def abstract_batch(config: ConfigDict) -> Batch:
    """Shapes and dtypes of one global batch as the pipeline would send it."""
    b, s, method = config.batch, config.data.crop, config.method
    image = jax.ShapeDtypeStruct((b, s, s, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((b, s, s), jnp.uint8)
    unlabelled = UnlabelledBatch(image=image, size=jax.ShapeDtypeStruct((b, 2), jnp.int32))
    own_partner = method.semi_supervised and method.partner == "same_image"
    return Batch(
        labelled=LabelledBatch(image=image, label=label),
        unlabelled=unlabelled if method.semi_supervised else None,
        partner=unlabelled if own_partner else None,
    )


@functools.partial(jax.jit, static_argnames=("segmenter", "seed"))
def init_variables(segmenter: SegmentationModel, text: ClassText | None, seed: int) -> PyTree:
    """{"params", "batch_stats"} of a segmenter that was never trained; traced once for equal ones."""
    image = jnp.zeros((1, segmenter.crop, segmenter.crop, 3))
    # "rbg" compiles to far less code than the default generator, once per leaf.
    variables = segmenter.init(jax.random.key(seed, impl="rbg"), image, text)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def _optimizer(
    config: ConfigDict,
    segmenter: SegmentationModel,
    text: ClassText | None,
    groups: tuple[groups_lib.Group, ...],
    schedule: optax.Schedule,
) -> optax.GradientTransformation:
    shapes = jax.eval_shape(lambda: init_variables(segmenter, text, config.seed))
    if config.accumulation > 1 and shapes["batch_stats"]:
        raise ValueError(
            f"accumulation = {config.accumulation} would normalise every part of the batch by itself in "
            f"{' and '.join(shapes['batch_stats'])}, which has BatchNorm; set accumulation = 1 and use more "
            "devices, or choose a model without it"
        )
    trained, _ = groups_lib.partition(shapes["params"], groups)
    return optimizer.build(
        trained,
        groups,
        schedule,
        name=config.optim.name,
        weight_decay=config.optim.weight_decay,
    )
