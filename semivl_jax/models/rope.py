"""Rotary position embedding of image patches, as DINOv3 (arXiv 2508.10104) has it.

In: queries or keys B×T×H×D, patches last. Out: the same with their patches rotated; class and register tokens
stay. Channels are rotated in pairs (i, i + D/2): a quarter of the angles is for the row, then one for the
column. Positions are relative to the image, so any grid of patches has its table.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from semivl_jax.models.pos_embed import Grid

Table = tuple[Float[Array, "p d"], Float[Array, "p d"]]
"""Sine and cosine of every patch and channel, float32."""


def coordinates(grid: Grid) -> Float[np.ndarray, "p 2"]:
    """Row and column of the centres of patches, row by row, in [-1, 1] along each side."""
    axes = [2 * (np.arange(0.5, side) / side) - 1 for side in grid]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def table(positions: Float[np.ndarray, "p 2"], channels: int, *, base: float = 100.0) -> Table:
    """Sine and cosine for heads of so many channels.

    Raises:
      ValueError: the channels cannot be divided by 4.
    """
    if channels % 4:
        raise ValueError(
            f"heads of {channels} channels cannot be rotated along two axes; choose num_heads so that they "
            "have a multiple of 4"
        )
    quarter = channels // 4
    periods = base ** (np.arange(quarter) / quarter)
    angles = 2 * np.pi * positions[:, :, None] / periods
    angles = np.tile(angles.reshape(len(positions), -1), 2)
    return jnp.asarray(np.sin(angles), jnp.float32), jnp.asarray(np.cos(angles), jnp.float32)


def rotate(x: Float[Array, "b t h d"], rope: Table) -> Float[Array, "b t h d"]:
    """`x` with its last tokens, one for each row of the table, rotated in float32."""
    sin, cos = (part[None, :, None] for part in rope)
    first = x.shape[1] - sin.shape[1]
    patches = x[:, first:].astype(jnp.float32)
    low, high = jnp.split(patches, 2, axis=-1)
    turned = patches * cos + jnp.concatenate([-high, low], axis=-1) * sin
    return jnp.concatenate([x[:, :first], turned.astype(x.dtype)], axis=1)
