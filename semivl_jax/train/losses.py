"""The training criteria: per-pixel cross entropy and the ways it is weighted and averaged.

In: logits [b, h, w, n] of any float dtype, or of a smaller grid, from which they are resized bilinearly to
the labels, a block of rows at a time; labels [b, h, w] of class indices, where 255 does not count;
confidences [b, h, w] in [0, 1]; ignore maps [b, h, w], true where a pixel is padding. Out: float32
scalars that are finite whatever the labels are: a criterion without any pixel to average over is 0,
and so is its gradient.

Source: METHOD sections 4.6 and 9 (traps 8, 9 and 14).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Integer

from semivl_jax.models.resize import by_rows
from semivl_jax.types import IGNORE_INDEX

ConfidenceMode = Literal["pixelwise", "pixelratio", "pixelavg"]
GuidanceReduction = Literal["mean", "mean_valid", "mean_all"]


def cross_entropy(
    logits: Float[Array, "b _ _ n"], label: Integer[Array, "b h w"]
) -> Float32[Array, "b h w"]:
    """Cross entropy of every pixel; a pixel labelled 255 gives 0 and has no gradient."""
    return cross_entropies(logits, label)[0]


def cross_entropies(
    logits: Float[Array, "b _ _ n"], *labels: Integer[Array, "b h w"]
) -> list[Float32[Array, "b h w"]]:
    """`cross_entropy` with several label maps, for which the logits are resized once."""
    size = labels[0].shape[1:]
    return by_rows(_of_pixels, logits.astype(jnp.float32), *labels, size=size)


def _of_pixels(logits: Array, *labels: Array) -> list[Array]:
    # Comparing with the class index instead of gathering: the compiler fuses it into the reduction,
    # its gradient is no scatter, and 255 needs no safe stand-in.
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    losses = []
    for label in labels:
        hit = label.astype(jnp.int32)[..., None] == classes[None, None, None, :]
        chosen = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
        losses.append(jnp.where(label == IGNORE_INDEX, 0.0, normalizer - chosen))
    return losses


def supervised(
    logits: Float[Array, "b _ _ n"],
    label: Integer[Array, "b h w"],
    *,
    count: Integer[Array, ""] | None = None,
) -> Float32[Array, ""]:
    """Mean cross entropy over the pixels that are not 255; see `labelled_pixels` for `count`."""
    count = labelled_pixels(label) if count is None else count
    return _ratio(jnp.sum(cross_entropy(logits, label)), count)


def ohem(
    logits: Float[Array, "b _ _ n"],
    label: Integer[Array, "b h w"],
    *,
    threshold: float,
    min_kept: int,
) -> Float32[Array, ""]:
    """Mean cross entropy over the hard pixels: those whose true class is at most `threshold` probable.

    The threshold rises to the `min_kept`-th lowest probability of the batch where that is higher (255
    counts as probability 1), so that at least `min_kept` pixels stay. The plain mean is returned where
    fewer than `min_kept` pixels are labelled, and, as published, where `min_kept` is 0.

    Errors: ValueError for a negative `min_kept`.
    """
    if min_kept < 0:
        raise ValueError(
            f"min_kept = {min_kept}: OHEM keeps at least that many pixels; use 0 or more"
        )
    loss = cross_entropy(logits, label)
    valid = label != IGNORE_INDEX
    kept = valid
    # More than the batch has pixels is more than it can have labelled: nothing is ever selected.
    if 0 < min_kept <= label.size:
        # exp(-loss) is the probability of the true class, and 1 where the label is 255.
        probability = jax.lax.stop_gradient(jnp.exp(-loss))
        bound = jnp.maximum(jnp.sort(probability.ravel())[min_kept - 1], threshold)
        hard = valid & (probability <= bound)
        kept = jnp.where(min_kept > jnp.sum(valid), valid, hard)
    return _ratio(jnp.sum(jnp.where(kept, loss, 0.0)), jnp.sum(kept))


def consistency(
    loss: Float32[Array, "b h w"],
    confidence: Float[Array, "b h w"],
    ignore: Bool[Array, "b h w"],
    *,
    mode: ConfidenceMode,
    threshold: float,
    count: Integer[Array, ""] | None = None,
    confidence_sum: Float32[Array, ""] | None = None,
) -> Float32[Array, ""]:
    """Cross entropies with pseudo-labels, weighted by how sure the teacher was.

    `pixelwise` counts the pixels with confidence >= threshold. `pixelratio` weights every image with its
    share of such pixels. `pixelavg` multiplies the sum over the *whole batch* with the mean confidence of
    each image and adds that up, as published: it grows with the batch and does not use the threshold. In
    the last two, padding stays in the numerator. All divide by the number of pixels that are no padding.

    `count` and `confidence_sum` are those of the whole batch (`valid_pixels`, `confidence_sums`) where the
    arguments are a part of it.

    Errors: ValueError for another mode.
    """
    valid = ~ignore
    if mode == "pixelwise":
        total = jnp.sum(jnp.where(valid & (confidence >= threshold), loss, 0.0))
    elif mode == "pixelratio":
        share = _image_mean(confidence >= threshold, valid)
        total = jnp.sum(jnp.sum(loss, axis=(1, 2)) * share)
    elif mode == "pixelavg":
        if confidence_sum is None:
            confidence_sum = confidence_sums(confidence, ignore)
        total = jnp.sum(loss) * confidence_sum
    else:
        raise ValueError(
            f"confidence mode {mode!r}: choose 'pixelwise', 'pixelratio' or 'pixelavg'"
        )
    return _ratio(total, jnp.sum(valid) if count is None else count)


def guidance(
    loss: Float32[Array, "b h w"],
    label: Integer[Array, "b h w"],
    ignore: Bool[Array, "b h w"],
    *,
    reduction: GuidanceReduction,
    count: Integer[Array, ""] | None = None,
) -> Float32[Array, ""]:
    """Cross entropies with the guidance labels (255: the frozen tower is not sure, or padding).

    The sum is divided by the number of labelled pixels (`mean`), of pixels that are no padding
    (`mean_valid`) or of all pixels (`mean_all`, the published choice); see `guidance_pixels` for `count`.

    Errors: ValueError for another reduction.
    """
    count = guidance_pixels(label, ignore, reduction=reduction) if count is None else count
    return _ratio(jnp.sum(loss), count)


def labelled_pixels(label: Integer[Array, "b h w"]) -> Int32[Array, ""]:
    """Pixels that are not 255: what `supervised` divides by.

    Criteria take the `count` of a whole batch where their arguments are a part of it. Their values for all
    parts then add up to the value for the batch.
    """
    return jnp.sum(label != IGNORE_INDEX)


def valid_pixels(ignore: Bool[Array, "b h w"]) -> Int32[Array, ""]:
    """Pixels that are no padding: what `consistency` divides by."""
    return jnp.sum(~ignore)


def confidence_sums(
    confidence: Float[Array, "b h w"], ignore: Bool[Array, "b h w"]
) -> Float32[Array, ""]:
    """Mean confidence of every image, added up: the factor of `consistency` in the mode `pixelavg`."""
    return jnp.sum(_image_mean(confidence, ~ignore))


def guidance_pixels(
    label: Integer[Array, "b h w"],
    ignore: Bool[Array, "b h w"],
    *,
    reduction: str,
) -> Int32[Array, ""]:
    """What `guidance` divides by. ValueError for an unknown reduction."""
    if reduction == "mean":
        return labelled_pixels(label)
    if reduction == "mean_valid":
        return valid_pixels(ignore)
    if reduction == "mean_all":
        return jnp.asarray(label.size, jnp.int32)
    raise ValueError(f"guidance reduction {reduction!r}: choose 'mean', 'mean_valid' or 'mean_all'")


def confident_share(
    confidence: Float[Array, "b h w"], ignore: Bool[Array, "b h w"], *, threshold: float
) -> Float32[Array, ""]:
    """Share of the batch's pixels with confidence >= threshold among those that are no padding."""
    valid = ~ignore
    sure = jnp.sum(valid & (confidence >= threshold))
    return _ratio(sure.astype(jnp.float32), jnp.sum(valid))


def _ratio(total: Float32[Array, "..."], count: Integer[Array, "..."]) -> Float32[Array, "..."]:
    """total / count, and 0 where nothing was counted (also for a total that is not 0)."""
    return jnp.where(count > 0, total / jnp.maximum(count, 1), 0.0)


def _image_mean(
    values: Float[Array, "b h w"] | Bool[Array, "b h w"], valid: Bool[Array, "b h w"]
) -> Float32[Array, " b"]:
    """Mean of each image over its valid pixels."""
    total = jnp.sum(jnp.where(valid, values, 0), axis=(1, 2), dtype=jnp.float32)
    return _ratio(total, jnp.sum(valid, axis=(1, 2)))
