"""What the loss of a label map may depend on beside its labels: how frequent classes are, where they meet.

In: labels int32 [b, h, w] without 255. Out: float32 [n] or bool [b, h, w].
Source: CW-BASS (arXiv 2502.15152).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32


def class_weights(
    label: Int32[Array, "b h w"], kept: Bool[Array, "b h w"], *, num_classes: int
) -> Float32[Array, " n"]:
    """Inverse frequency of the kept pixels of each class, 1 on average over the classes that occur."""
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    hit = kept[..., None] & (label[..., None] == classes[None, None, None, :])
    count = jnp.sum(hit, axis=(0, 1, 2), dtype=jnp.float32)
    inverse = jnp.where(count > 0, 1 / jnp.maximum(count, 1), 0.0)
    mean = jnp.sum(inverse) / jnp.maximum(jnp.sum(count > 0), 1)
    return inverse / jnp.where(mean > 0, mean, 1.0)


def boundaries(label: Int32[Array, "b h w"]) -> Bool[Array, "b h w"]:
    """Where the Sobel gradient of any class's mask is not 0; outside the image there is no class."""
    padded = jnp.pad(label, ((0, 0), (1, 1), (1, 1)), constant_values=-1)

    def differ(maps: Array) -> Array:
        """Whether a class weighs differently in the two lines (1, 2, 1) beside a pixel, along rows."""
        rows = [maps[:, i : i + maps.shape[1] - 2] for i in range(3)]
        (a, b, c), (x, y, z) = (
            [row[:, :, i : row.shape[2] - 2 + i] for row in rows] for i in (0, 2)
        )
        same = (b == y) & (((a == x) & (c == z)) | ((a == z) & (c == x)))
        crossed = (a == c) & (c == y) & (x == z) & (z == b)
        return ~(same | crossed)

    return differ(padded) | differ(padded.transpose(0, 2, 1)).transpose(0, 2, 1)
