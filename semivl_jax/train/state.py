"""The state that a training step updates, and the frozen arrays that it only reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int32

from semivl_jax.train import param_groups
from semivl_jax.types import ClassText, PyTree


@struct.dataclass
class TrainState:
    """The checkpointed state.

    step: updates done.
    skipped: non-finite steps since the last finite one.
    params: trained parameters by part (`backbone`, `decoder`, … and `method` for a method's own).
    frozen_params: parameters of the same parts that are not trained.
    batch_stats: running statistics, empty without BatchNorm.
    ema_params, ema_batch_stats: the EMA of params and batch_stats; None for a method without one.
    method: the method's own state.
    """

    step: Int32[Array, ""]
    skipped: Int32[Array, ""]
    params: PyTree
    frozen_params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema_params: PyTree | None
    ema_batch_stats: PyTree | None
    method: PyTree = struct.field(default_factory=dict)

    def student(self) -> PyTree:
        """Variables of the student for `SegmentationModel.apply`."""
        return variables(self.params, self.frozen_params, self.batch_stats)

    def teacher(self) -> PyTree:
        """Variables of the teacher: the EMA where there is one, else the student."""
        if self.ema_params is None:
            return self.student()
        return variables(self.ema_params, self.frozen_params, self.ema_batch_stats)


@struct.dataclass
class Frozen:
    """Read by every step, never changed and never checkpointed; None where the method needs none.

    text: describes the classes to the decoder.
    guidance_params, guidance_text: of the frozen CLIP that labels unlabelled images.
    method_variables: variables of the method's own frozen networks (`Method.networks`).
    """

    text: ClassText | None
    guidance_params: PyTree | None = None
    guidance_text: ClassText | None = None
    method_variables: PyTree = struct.field(default_factory=dict)


def variables(params: PyTree, frozen_params: PyTree, batch_stats: PyTree) -> PyTree:
    """Trained and frozen parameters of the model together, beside the running statistics."""
    merged = param_groups.merge(params, frozen_params)
    merged.pop("method", None)
    return {"params": merged, "batch_stats": batch_stats}


def create(
    params: PyTree,
    frozen_params: PyTree,
    batch_stats: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    method: PyTree | None = None,
) -> TrainState:
    """State before the first update; the EMA starts as a copy of the student."""

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(jnp.array, tree)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        frozen_params=frozen_params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema_params=copy(params) if ema else None,
        ema_batch_stats=copy(batch_stats) if ema else None,
        method={} if method is None else method,
    )
