"""Pseudo-labels from a teacher's logits, and CutMix: pasting boxes of a partner into a batch.

In: logits [b, h, w, n] of any float dtype, or of a smaller grid; boxes [b, h, w], true where the partner
is seen; images [b, h, w, c] or maps [b, h, w] of any dtype. Out: labels int32 in [0, n), confidences
float32 in [1/n, 1]; mixed arrays of the shape and dtype that came in.

Source: METHOD sections 4.1, 4.2 and 4.5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

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


def mix(
    box: Bool[Array, "b h w"],
    here: Shaped[Array, "b h w *c"],
    partner: Shaped[Array, "b h w *c"],
) -> Shaped[Array, "b h w *c"]:
    """`partner` inside the box, `here` outside; for images and for maps.

    Errors: ValueError where the two differ in dtype (the result would silently take the wider one).
    """
    if here.dtype != partner.dtype:
        raise ValueError(
            f"CutMix of {here.dtype} with {partner.dtype}: give both arrays the same dtype"
        )
    return jnp.where(box.reshape(box.shape + (1,) * (here.ndim - 3)), partner, here)
