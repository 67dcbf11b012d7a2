"""What a training run carries from step to step, and what it only reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int32

from semivl_jax.train import param_groups as groups_lib
from semivl_jax.types import ClassText, PyTree


@struct.dataclass
class TrainState:
    """Everything that a checkpoint holds of the model.

    `step` counts the updates done; `skipped` the non-finite ones since the last finite one. `ema` averages
    `trained`, maybe in half precision, and is None where the student teaches itself; `batch_stats` is empty
    without BatchNorm.
    """

    step: Int32[Array, ""]
    skipped: Int32[Array, ""]
    trained: PyTree
    frozen: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema: PyTree | None
    ema_batch_stats: PyTree | None

    def student(self) -> PyTree:
        """Variables of the student for `SegmentationModel.apply`."""
        return variables(self.trained, self.frozen, self.batch_stats)

    def teacher(self) -> PyTree:
        """Variables of the teacher: the average where one is kept, else the student."""
        if self.ema is None:
            return self.student()
        # A half-precision average is stored as such, but used like any other weights.
        average = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), self.ema)
        return variables(average, self.frozen, self.ema_batch_stats)


@struct.dataclass
class Constants:
    """Read by every step, never changed and never checkpointed; None is what a recipe does without."""

    text: ClassText | None
    guidance_params: PyTree | None = None
    guidance_text: ClassText | None = None


def variables(trained: PyTree, frozen: PyTree, batch_stats: PyTree) -> PyTree:
    """The two halves of the parameters together, beside the running statistics."""
    return {"params": groups_lib.merge(trained, frozen), "batch_stats": batch_stats}


def create(
    trained: PyTree,
    frozen: PyTree,
    batch_stats: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
) -> TrainState:
    """State before the first update; the average starts as a copy of the student."""

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(jnp.array, tree)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        trained=trained,
        frozen=frozen,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trained),
        ema=copy(trained) if ema else None,
        ema_batch_stats=copy(batch_stats) if ema else None,
    )
