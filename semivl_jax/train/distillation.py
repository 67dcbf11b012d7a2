"""What a trained network tells a student beside labels: similarities of regions, and mean logits of images.

In: maps and logits [b, y, x, c], float. Out: float32. Source: MGD (arXiv 2208.10169).
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.resize import bilinear
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.types import ClassText, PyTree

Reduction = Literal["mean", "sum"]
Statistics = Literal["running", "batch"]
REGIONS = 7
"""Rows and columns of regions."""


@functools.partial(jax.jit, static_argnames=("model", "statistics"))
def predict(
    model: SegmentationModel,
    variables: PyTree,
    text: ClassText | None,
    image: Float[Array, "b h w 3"],
    *,
    statistics: Statistics,
) -> tuple[Float[Array, "b y x c"], Float32[Array, "b h w n"]]:
    """Deepest map of the encoder, and logits of the image's size; batch norms use these statistics."""
    size, train = image.shape[1:3], statistics == "batch"

    def both(model: SegmentationModel) -> tuple[Array, Array]:
        features = model.encode(image, train=train)
        square = None if model.via_square else size
        logits = model.decode(features, text, size=square, train=train)
        return features.maps[-1], bilinear(logits, size, align_corners=model.align_corners)

    found, _ = model.apply(variables, method=both, mutable=["batch_stats"])
    return found


def pooled(
    maps: Float[Array, "b y x c"], regions: int = REGIONS
) -> Float32[Array, "b {regions} {regions} c"]:
    """Means of regions that cover the map, and overlap where its sides are no multiples."""
    down, across = (_region_matrix(side, regions) for side in maps.shape[1:3])
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum(
        "ry,sx,byxc->brsc", down, across, maps.astype(jnp.float32), precision=precision
    )


def region_similarity(maps: Float[Array, "b y x c"]) -> Float32[Array, "b r r"]:
    """Cosines between all pairs of regions."""
    means = pooled(maps)
    unit = l2_normalize(means.reshape(means.shape[0], -1, means.shape[-1]))
    return jnp.einsum("brc,bsc->brs", unit, unit, precision=jax.lax.Precision.HIGHEST)


def region_loss(
    student: Float[Array, "b r r"], teacher: Float[Array, "b r r"]
) -> Float32[Array, ""]:
    """Mean squared difference of the similarities."""
    return jnp.mean((student - teacher) ** 2)


def image_loss(
    student: Float[Array, "b n"], teacher: Float[Array, "b n"], *, reduction: Reduction
) -> Float32[Array, ""]:
    """Absolute difference of mean logits, as mean or sum over images and classes."""
    distance = jnp.abs(student - teacher)
    return jnp.mean(distance) if reduction == "mean" else jnp.sum(distance)


def _region_matrix(side: int, regions: int) -> Float32[np.ndarray, "regions side"]:
    """Rows average the pixels from ⌊i · side / regions⌋ to ⌈(i + 1) · side / regions⌉."""
    matrix = np.zeros((regions, side), np.float32)
    for i in range(regions):
        start, stop = i * side // regions, -(-(i + 1) * side // regions)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix
