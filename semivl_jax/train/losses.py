"""The training criteria: weighted sums of per-pixel cross entropies, and the weights that define them.

Every per-pixel criterion of the published methods is Σ weight · CE(logits, label) with a weight map that
needs no gradient. `*_weights` make these maps for a whole batch; `weighted_cross_entropies` sums.
The divisors are part of the weights, so losses of parts of a batch add up to the loss of the batch.

In: logits [b, h, w, n] of any float dtype, or of a smaller grid, from which they are resized bilinearly to
the labels, a block of rows at a time; labels [b, h, w] of class indices, where 255 does not count;
ignore maps [b, h, w], true where a pixel is padding. Out: weights
float32 [b, h, w]; losses float32 scalars that are finite whatever the labels are: a criterion without any
pixel to average over is 0, and so is its gradient.

Source: docs/semivl.md 4.6, 9.8 and 9.14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Integer

from semivl_jax.models.resize import by_rows
from semivl_jax.types import IGNORE_INDEX

GuidanceReduction = Literal["mean", "mean_valid", "mean_all"]


def cross_entropies(
    logits: Float[Array, "b _ _ n"], *labels: Integer[Array, "b h w"]
) -> list[Float32[Array, "b h w"]]:
    """Cross entropy of every pixel for each label map; a pixel labelled 255 gives 0 and no gradient.

    The logits are resized once.
    """
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


def weighted_cross_entropies(
    logits: Float[Array, "b _ _ n"],
    labels: Sequence[Integer[Array, "b h w"]],
    weights: Sequence[Float[Array, "b h w"]],
) -> list[Float32[Array, ""]]:
    """Σ weight · CE for every pair of a label map and its weights; the logits are resized once."""
    losses = cross_entropies(logits, *labels)
    return [jnp.sum(loss * weight) for loss, weight in zip(losses, weights, strict=True)]


def supervised_weights(label: Integer[Array, "b h w"]) -> Float32[Array, "b h w"]:
    """Weights of the mean over all pixels that are not 255."""
    labelled = label != IGNORE_INDEX
    return ratio(labelled, jnp.sum(labelled))


def guidance_weights(
    label: Integer[Array, "b h w"],
    ignore: Bool[Array, "b h w"],
    *,
    reduction: GuidanceReduction,
) -> Float32[Array, "b h w"]:
    """Weights of guidance labels (255: low confidence, or padding).

    The divisor is the number of labelled pixels (`mean`), of pixels that are no padding (`mean_valid`)
    or of all pixels (`mean_all`, the published choice).
    """
    labelled = label != IGNORE_INDEX
    counts = {"mean": labelled, "mean_valid": ~ignore, "mean_all": jnp.ones_like(labelled)}
    return ratio(labelled, jnp.sum(counts[reduction]))


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
    """
    (loss,) = cross_entropies(logits, label)
    valid = label != IGNORE_INDEX
    kept = valid
    # More than the batch has pixels is more than it can have labelled: nothing is ever selected.
    if 0 < min_kept <= label.size:
        # exp(-loss) is the probability of the true class, and 1 where the label is 255.
        probability = jax.lax.stop_gradient(jnp.exp(-loss))
        bound = jnp.maximum(jnp.sort(probability.ravel())[min_kept - 1], threshold)
        hard = valid & (probability <= bound)
        kept = jnp.where(min_kept > jnp.sum(valid), valid, hard)
    return ratio(jnp.sum(jnp.where(kept, loss, 0.0)), jnp.sum(kept))


def share_of_valid(
    chosen: Bool[Array, "b h w"], ignore: Bool[Array, "b h w"]
) -> Float32[Array, ""]:
    """Share of the batch's pixels that are chosen, among those that are no padding."""
    valid = ~ignore
    return ratio(jnp.sum(valid & chosen), jnp.sum(valid))


def ratio(value: Array, count: Array) -> Float32[Array, "..."]:
    """value / count, and 0 where nothing was counted (also for a value that is not 0)."""
    value = jnp.asarray(value, jnp.float32)
    return jnp.where(count > 0, value / jnp.maximum(count, 1), 0.0)
