"""Pseudo-labels from a teacher's logits, and the weight that each pixel's confidence gives them.

In: logits [b, y, x, n] of any float dtype, of the images' size or of a smaller grid. Out: labels int32
[b, h, w] in [0, n), confidences float32 in [1/n, 1], weights float32 [b, h, w] for `losses`.

Source: docs/semivl.md 4.2 and 4.6.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from semivl_jax.models.resize import by_rows
from semivl_jax.train import losses
from semivl_jax.types import PseudoLabels

ConfidenceMode = Literal["pixelwise", "pixelratio", "pixelavg"]


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


def consistency_weights(
    confidence: Float[Array, "b h w"],
    ignore: Bool[Array, "b h w"],
    *,
    mode: ConfidenceMode,
    threshold: float | Float[Array, "b h w"],
) -> Float32[Array, "b h w"]:
    """Weights of pseudo-labels by the teacher's confidence.

    `pixelwise` counts the pixels with confidence >= threshold. `pixelratio` weights every image with its
    share of such pixels. `pixelavg` weights all pixels of the *whole batch* with the mean confidences of the
    images, added up, as published: it grows with the batch and does not use the threshold. In the last two,
    padding stays in the numerator. All divide by the number of pixels that are no padding.
    """
    valid = ~ignore
    if mode == "pixelwise":
        weight = valid & (confidence >= threshold)
    elif mode == "pixelratio":
        weight = _image_mean(confidence >= threshold, valid)[:, None, None]
    else:
        weight = jnp.sum(_image_mean(confidence, valid))
    return jnp.broadcast_to(losses.ratio(weight, jnp.sum(valid)), confidence.shape)


def _image_mean(
    values: Float[Array, "b h w"] | Bool[Array, "b h w"], valid: Bool[Array, "b h w"]
) -> Float32[Array, " b"]:
    """Mean of each image over its valid pixels, 0 for an image without any."""
    total = jnp.sum(jnp.where(valid, values, 0), axis=(1, 2), dtype=jnp.float32)
    return losses.ratio(total, jnp.sum(valid, axis=(1, 2)))
