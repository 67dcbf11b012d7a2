"""What a step finds out about a batch, on its way to the update."""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Float

from semivl_jax.train.forward import StudentLogits
from semivl_jax.train.objective import Metrics
from semivl_jax.types import PyTree


@struct.dataclass
class Outcome:
    """The loss, its gradients by trained leaf, the new running statistics and metrics.

    `logits`, for a look at them, are None where they were computed in parts or are not kept.
    """

    loss: Float[Array, ""]
    gradients: PyTree
    batch_stats: PyTree
    metrics: Metrics
    logits: StudentLogits | None = None
