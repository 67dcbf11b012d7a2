"""Pseudo-labels from a teacher's logits.

In: logits [b, y, x, n] of any float dtype, of the images' size or of a smaller grid. Out: labels int32
[b, h, w] in [0, n), confidences float32 in [1/n, 1]. Source: METHOD sections 4.1 and 4.2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from semivl_jax.models.resize import by_rows
from semivl_jax.types import PseudoLabels


def pseudo_labels(
    logits: Float[Array, "b _ _ n"], *, size: tuple[int, int] | None = None
) -> PseudoLabels:
    """The most probable class of every pixel and its probability; no gradient flows through.

    With `size` = (rows, columns) of the logits resized bilinearly to it.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    return by_rows(_most_probable, logits, size=size or logits.shape[1:3])


def _most_probable(logits: Array) -> PseudoLabels:
    return PseudoLabels(
        label=jnp.argmax(logits, axis=-1).astype(jnp.int32),
        confidence=jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1),
    )
