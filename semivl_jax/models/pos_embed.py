"""Position tables on other patch grids than the one they were trained on.

In and out: tables (1, class_rows + y·x, c): a row for the class token or none, then the grid's rows. Resizing
leaves the class token's row alone and is, in torch's conventions, one of

    bicubic    SemiVL's. As published, a table is resized only where the *number* of patches differs: a
               grid of another shape with equally many patches takes it as it is (METHOD 1.3).
    bilinear   ZegCLIP's (METHOD 9, trap 20)
    dinov2     bicubic with 0.1 added to the new lengths before the scale is computed, as DINOv2 does it
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from semivl_jax.models.resize import bicubic, bilinear, resize_matrix

Grid = tuple[int, int]
"""Rows and columns of patches."""

Resizing = Literal["bicubic", "bilinear", "dinov2"]

DINOV2_OFFSET = 0.1


def resize_table(
    table: Float[np.ndarray, "1 t c"],
    grid_from: Grid,
    grid_to: Grid,
    *,
    resizing: Resizing = "bicubic",
    class_rows: int = 1,
) -> Float32[np.ndarray, "1 {class_rows}+{grid_to[0]}*{grid_to[1]} c"]:
    """The table for another grid, on the host: once, when weights are loaded.

    ValueError where the table does not have one row per patch of `grid_from` and `class_rows` more.
    """
    _check(table.shape, grid_from, class_rows)
    if _fits(grid_from, grid_to, resizing):
        return np.asarray(table, np.float32)
    rows, cols = (
        resize_matrix(
            n_in,
            n_out,
            method="bilinear" if resizing == "bilinear" else "bicubic",
            align_corners=False,
            offset=DINOV2_OFFSET if resizing == "dinov2" else 0.0,
        )
        for n_in, n_out in zip(grid_from, grid_to, strict=True)
    )
    patches = np.asarray(table[0, class_rows:], np.float32).reshape(*grid_from, -1)
    resized = np.einsum("ph,qw,hwc->pqc", rows, cols, patches, optimize=True)
    flat = resized.reshape(1, -1, table.shape[-1])
    return np.concatenate([table[:, :class_rows], flat], axis=1).astype(np.float32)


def table_at(
    table: Float[Array, "1 t c"],
    grid_from: Grid,
    grid_to: Grid,
    *,
    resizing: Resizing = "bicubic",
    class_rows: int = 1,
) -> Float[Array, "1 {class_rows}+{grid_to[0]}*{grid_to[1]} c"]:
    """The same inside the network, differentiable: for inputs that are not of the training size."""
    _check(table.shape, grid_from, class_rows)
    if _fits(grid_from, grid_to, resizing):
        return table
    channels = table.shape[-1]
    patches = table[:, class_rows:].reshape(1, *grid_from, channels)
    if resizing == "bilinear":
        patches = bilinear(patches, grid_to, align_corners=False)
    else:
        offset = DINOV2_OFFSET if resizing == "dinov2" else 0.0
        patches = bicubic(patches, grid_to, offset=offset)
    return jnp.concatenate([table[:, :class_rows], patches.reshape(1, -1, channels)], axis=1)


def square_grid(table_rows: int, *, source: str, class_rows: int = 1) -> Grid:
    """The square grid of a table with that many rows; ValueError where it cannot be square."""
    grid = _square(table_rows - class_rows)
    if grid is None:
        raise ValueError(
            f"{source}: a position table of {table_rows} rows is not {class_rows} + a square number, so its "
            "grid is unknown; load it at its own size"
        )
    return grid


def stored_grid(table_rows: int, *, like: Grid, source: str, class_rows: int = 1) -> Grid:
    """The grid of a stored table: square, or that of the model (`like`) where the number of rows fits."""
    if _square(table_rows - class_rows) is None and table_rows - class_rows == like[0] * like[1]:
        return like
    return square_grid(table_rows, source=source, class_rows=class_rows)


def _square(patches: int) -> Grid | None:
    side = round(max(patches, 0) ** 0.5)
    return (side, side) if side and side * side == patches else None


def _fits(grid_from: Grid, grid_to: Grid, resizing: Resizing) -> bool:
    """Whether the table is taken as it is."""
    if resizing == "bicubic":
        return grid_from[0] * grid_from[1] == grid_to[0] * grid_to[1]
    return grid_from == grid_to


def _check(shape: tuple[int, ...], grid: Grid, class_rows: int) -> None:
    rows = class_rows + grid[0] * grid[1]
    if shape[1] != rows:
        raise ValueError(
            f"a position table of {shape[1]} rows does not belong to a grid of {grid[0]}×{grid[1]} "
            f"patches with {class_rows} row for the class token ({rows} rows)"
        )
