"""Gaussian blur of a batch, as Pillow computes it: three box blurs along rows, then three along columns.

In and out: images float32 [b, h, w, c], whole numbers in [0, 255]; one sigma per image, float32 [b], in
pixels. Every pass rounds to whole numbers and repeats the border pixel outwards.

Source: docs/semivl.md 6 and 9.18; the box lengths are those of Gwosdek et al., "Theoretical
foundations of Gaussian convolution by extended box filtering" (SSVM 2011).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, UInt32

_PASSES = 3
_ONE = 2**24  # the fixed-point 1 of the tap weights


def gaussian_blur(
    images: Float32[Array, "b h w c"], sigma: Float[Array, " b"], *, max_sigma: float
) -> Float32[Array, "b h w c"]:
    """Blur each image with its own sigma in [0, max_sigma]; 0 leaves it as it is.

    `max_sigma` is static and fixes the number of taps of a pass: five up to 2.44.

    Errors: ValueError for a negative `max_sigma`.
    """
    if max_sigma < 0:
        raise ValueError(f"max_sigma = {max_sigma}: a blur needs a sigma of at least 0")
    reach = math.floor((math.sqrt(12.0 * max_sigma**2 / _PASSES + 1.0) - 1.0) / 2.0) + 1
    weights = _box_weights(sigma.astype(jnp.float32), reach)
    levels = images.astype(jnp.uint32)
    # A loop, because in fused passes every tap would compute the previous pass again.
    for axis in (2, 1):
        levels = lax.fori_loop(
            0, _PASSES, lambda _, now, axis=axis: _box_blur(now, weights, axis), levels
        )
    return levels.astype(jnp.float32)


def _box_weights(sigma: Float32[Array, " b"], reach: int) -> list[UInt32[Array, "b 1 1 1"]]:
    """Weight of the taps at distance 0, 1, … `reach` from the centre, in units of 2**-24.

    A box of radius l + a has 2l + 1 full taps and one of relative weight a at either end; a is
    such that a pass has the wanted variance. Whole numbers, because sums that lie halfway between
    two grey levels are common (radius 1/4 has weights of 1/6 and 2/3) and must round as they do in
    Pillow.
    """
    variance = sigma**2 / _PASSES
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    part = part / (6.0 * (variance - (whole + 1.0) ** 2))
    full = jnp.floor(_ONE / (2.0 * (whole + part) + 1.0)).astype(jnp.uint32)
    whole = whole.astype(jnp.uint32)
    end = (jnp.uint32(_ONE) - (2 * whole + 1) * full) // 2
    taps = [
        jnp.where(distance <= whole, full, jnp.where(distance == whole + 1, end, 0))
        for distance in range(reach + 1)
    ]
    return [tap[:, None, None, None] for tap in taps]


def _box_blur(
    levels: UInt32[Array, "b h w c"], weights: list[UInt32[Array, "b 1 1 1"]], axis: int
) -> UInt32[Array, "b h w c"]:
    """One pass; sums stay below 256 · 2**24 and so within 32 bits."""
    reach, size = len(weights) - 1, levels.shape[axis]
    padding = [(0, 0)] * levels.ndim
    padding[axis] = (reach, reach)
    padded = jnp.pad(levels, padding, mode="edge")

    def shifted(offset: int) -> UInt32[Array, "b h w c"]:
        start = reach + offset
        return lax.slice_in_dim(padded, start, start + size, axis=axis)

    total = weights[0] * levels
    for distance in range(1, reach + 1):
        total = total + weights[distance] * (shifted(-distance) + shifted(distance))
    return (total + jnp.uint32(_ONE // 2)) // jnp.uint32(_ONE)
