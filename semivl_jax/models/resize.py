"""Resizing and pooling of maps as in the published networks.

In and out: float maps B×H×W×C of any value range, same dtype out as in. Conventions are torch's
(docs/semivl.md 1.3, 3.5, 3.10): half-pixel centres or aligned corners, the bicubic coefficient −0.75,
border replicated, no antialias filter. `jax.image.resize` differs in all of these. A resize is two products
with constant interpolation matrices, rows first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Shaped

from semivl_jax.types import PyTree

Method = Literal["bilinear", "bicubic"]

CUBIC = -0.75
"""The free coefficient of the cubic kernel."""

BLOCK_BYTES = 2**26
"""Size of the blocks of `by_rows` (over all devices that share the batch)."""


def resize_matrix(
    n_in: int,
    n_out: int,
    *,
    method: Method,
    align_corners: bool,
    offset: float = 0.0,
    rows: tuple[int, int] | None = None,
) -> Float32[np.ndarray, "_ {n_in}"]:
    """Weights of every input sample in every output sample of one axis; each row sums to 1.

    [n_out, n_in], or with `rows` = (start, stop) those rows of it. `offset` is added to the output's length
    for the distance of its samples (half-pixel centres only), as torch does for a scale factor that is no
    ratio of two lengths. ValueError for a length below 1.
    """
    if n_in < 1 or n_out < 1:
        raise ValueError(f"cannot resize {n_in} samples to {n_out}: both must be at least 1")
    # Positions are rounded to float32 where torch rounds them, so that long axes agree too.
    target = np.arange(*(rows or (0, n_out)), dtype=np.float32)
    if align_corners:
        step = np.float32(n_in - 1 if n_out > 1 else 0) / np.float32(max(n_out - 1, 1))
        position = target * step
    else:
        half = np.float32(0.5)
        step = np.float32(n_in / (n_out + offset))
        position = (target + half) * step - half
    taps = _linear_taps if method == "bilinear" else _cubic_taps
    matrix = np.zeros((len(target), n_in), np.float32)
    for index, weight in taps(position):
        np.add.at(matrix, (np.arange(len(target)), np.clip(index, 0, n_in - 1)), weight)
    return matrix


def bilinear(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool
) -> Float[Array, "b {size[0]} {size[1]} c"]:
    """Bilinear resize to `size` = (rows, columns), up or down, without antialias."""
    return _resize(x, size, "bilinear", align_corners)


def bicubic(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, offset: float = 0.0
) -> Float[Array, "b {size[0]} {size[1]} c"]:
    """Bicubic resize (a = −0.75, half-pixel centres) to `size` = (rows, columns).

    `offset` as for `resize_matrix`; with one, axes that keep their length are resized too.
    """
    return _resize(x, size, "bicubic", False, offset)


def by_rows(
    function: Callable[..., PyTree],
    x: Float[Array, "b y z c"],
    *maps: Shaped[Array, "b h w"],
    size: tuple[int, int],
) -> PyTree:
    """function(x resized bilinearly to `size` = (h, w), *maps) in blocks of rows, for pixelwise functions.

    The whole resized map is never in memory; the backward pass recomputes every block. Results are b×h×w.
    """
    batch, channels = x.shape[0], x.shape[-1]
    limit = max(1, BLOCK_BYTES // (4 * batch * size[1] * channels))
    rows = next(rows for rows in range(min(limit, size[0]), 0, -1) if size[0] % rows == 0)
    if x.shape[1:3] == size or rows == size[0]:
        return function(bilinear(x, size, align_corners=False), *maps)
    down, across = (
        resize_matrix(n_in, n_out, method="bilinear", align_corners=False)
        for n_in, n_out in zip(x.shape[1:3], size, strict=True)
    )

    @jax.checkpoint
    def block(down: Array, maps: list[Array]) -> PyTree:
        part = _along(1, down, x)
        return function(_along(2, jnp.asarray(across, x.dtype), part), *maps)

    def split(whole: Array) -> Array:
        return jnp.moveaxis(whole.reshape(batch, -1, rows, size[1]), 1, 0)

    blocks = (jnp.asarray(down.reshape(-1, rows, x.shape[1]), x.dtype), [split(m) for m in maps])
    out = jax.lax.map(lambda block_of: block(*block_of), blocks)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(batch, *size), out)


def avg_pool(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b _ _ c"]:
    """Mean of windows that do not overlap; rows and columns that do not fill a window are dropped.

    ValueError for a map smaller than one window (docs/semivl.md 9.4).
    """
    (b, h, w, c), (rows, cols) = x.shape, window
    if h < rows or w < cols:
        raise ValueError(
            f"a map of {h}×{w} is smaller than the pooling window {rows}×{cols}: "
            "feed a larger image or choose a smaller window"
        )
    y, z = h // rows, w // cols
    return x[:, : y * rows, : z * cols].reshape(b, y, rows, z, cols, c).mean(axis=(2, 4))


def _linear_taps(position: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    position = np.maximum(position, np.float32(0))
    left = np.floor(position)
    share = position - left
    index = left.astype(np.int64)
    return [(index, 1 - share), (index + 1, share)]


def _cubic_taps(position: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    left = np.floor(position)
    share = position - left
    index = left.astype(np.int64)

    def near(d: np.ndarray) -> np.ndarray:
        return ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1

    def far(d: np.ndarray) -> np.ndarray:
        return ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC

    return [
        (index - 1, far(share + 1)),
        (index, near(share)),
        (index + 1, near(1 - share)),
        (index + 2, far(2 - share)),
    ]


def _resize(
    x: Array, size: tuple[int, int], method: Method, align_corners: bool, offset: float = 0.0
) -> Array:
    for axis, n_out in ((1, size[0]), (2, size[1])):
        n_in = x.shape[axis]
        if n_in == n_out and not offset:  # both kernels are then exactly the identity
            continue
        matrix = resize_matrix(
            n_in, n_out, method=method, align_corners=align_corners, offset=offset
        )
        x = _along(axis, jnp.asarray(matrix, x.dtype), x)
    return x


def _along(axis: int, matrix: Array, x: Array) -> Array:
    """Rows (axis 1) or columns (axis 2) of a map times a resize matrix."""
    return jnp.einsum(
        "oh,bhwc->bowc" if axis == 1 else "ow,bhwc->bhoc",
        matrix,
        x,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    ).astype(x.dtype)
