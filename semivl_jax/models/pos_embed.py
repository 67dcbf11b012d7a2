"""Position tables on other patch grids than the one they were trained on.

In and out: tables (1, class_rows + y·x, c): `class_rows` rows for the class token (0 or 1), then one per
patch. Resizing keeps the class token's row and is, in torch's conventions, one of

    bicubic    SemiVL's. As published, a table is resized only where the *number* of patches differs: a
               grid of another shape with equally many patches takes it as it is (docs/semivl.md 1.3).
    bilinear   ZegCLIP's (docs/semivl.md 9.20)
    dinov2     bicubic with 0.1 added to the new lengths before the scale is computed
"""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from semivl_jax.models.resize import bicubic, bilinear

Grid = tuple[int, int]
"""Rows and columns of patches."""

Resizing = Literal["bicubic", "bilinear", "dinov2"]

DINOV2_OFFSET = 0.1


def resize_table(
    table: Float[Array | np.ndarray, "1 t c"],
    grid_from: Grid,
    grid_to: Grid,
    *,
    resizing: Resizing = "bicubic",
    class_rows: int = 1,
) -> Float[Array, "1 {class_rows}+{grid_to[0]}*{grid_to[1]} c"]:
    """The table for another grid, differentiable.

    ValueError unless the table has one row per patch of `grid_from` and `class_rows` more.
    """
    rows, channels = table.shape[1:]
    table, patches_from = jnp.asarray(table), math.prod(grid_from)
    if rows != class_rows + patches_from:
        raise ValueError(
            f"a position table of {rows} rows does not belong to a grid of {grid_from[0]}×{grid_from[1]} "
            f"patches with {class_rows} row for the class token ({class_rows + patches_from} rows)"
        )
    same_number = resizing == "bicubic" and patches_from == math.prod(grid_to)
    if grid_from == grid_to or same_number:
        return table
    patches = table[:, class_rows:].reshape(1, *grid_from, channels)
    if resizing == "bilinear":
        patches = bilinear(patches, grid_to, align_corners=False)
    else:
        offset = DINOV2_OFFSET if resizing == "dinov2" else 0.0
        patches = bicubic(patches, grid_to, offset=offset)
    return jnp.concatenate([table[:, :class_rows], patches.reshape(1, -1, channels)], axis=1)


def stored_grid(table_rows: int, *, like: Grid, source: str, class_rows: int = 1) -> Grid:
    """The grid of a stored table: square, or that of the model (`like`) if the number of rows fits.

    ValueError if neither is possible.
    """
    patches = table_rows - class_rows
    side = math.isqrt(max(patches, 0))
    if side and side * side == patches:
        return side, side
    if patches == math.prod(like):
        return like
    raise ValueError(
        f"{source}: a position table of {table_rows} rows is not {class_rows} + a square number, so its "
        "grid is unknown; load it at its own size"
    )
