"""Learning-rate schedule and optimisers with per-leaf multipliers.

In: hyper-parameters and the trained parameter tree. Out: an optax transformation.
Source: docs/semivl.md 5, 9.11 and 9.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from semivl_jax.train import param_groups as groups_lib
from semivl_jax.types import PyTree
from semivl_jax.weights import tree as tree_lib

OptimizerName = Literal["adamw", "sgd"]


def polynomial_schedule(
    *, lr: float, total_steps: int, power: float, warmup_steps: int = 0, warmup_ratio: float = 1e-6
) -> optax.Schedule:
    """Learning rate in force during step i = 0, 1, …

    The published schedule is applied after each step with that step's index, so the factors are
    1, 1, (1 − 1/I)^power, (1 − 2/I)^power, … A warm-up replaces the first `warmup_steps` of these
    indices by a line from `warmup_ratio` to 1; step 0 has the full rate even then, as published.
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        index = jnp.asarray(step, jnp.float32) - 1.0
        factor = jnp.clip(1.0 - index / total_steps, 0.0, 1.0) ** power
        if warmup_steps:
            line = warmup_ratio + (1.0 - warmup_ratio) * index / warmup_steps
            factor = jnp.where((index >= 0) & (index < warmup_steps), line, factor)
        return lr * factor

    return schedule


def build(
    params: PyTree,
    groups: Sequence[groups_lib.Group],
    schedule: optax.Schedule,
    *,
    name: OptimizerName,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Optimiser for the trained leaves `params`.

    AdamW decouples the decay (decay × current learning rate); SGD adds it to the gradient before the
    momentum, as torch does.
    """
    owners = groups_lib.assign(params, groups)
    lr_of = tree_lib.unflatten({path: owner.lr for path, owner in owners.items()})
    decay = optax.add_decayed_weights(weight_decay)
    if name == "adamw":
        direction = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), decay)
    else:
        direction = optax.chain(decay, optax.trace(decay=0.9))
    return optax.chain(direction, _scale_by_leaf(lr_of), optax.scale_by_learning_rate(schedule))


def _scale_by_leaf(factors: PyTree) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda update, factor: factor * update, updates, factors)
    )
