"""Outlines and run lengths to label maps.

Coordinates are pixels, x to the right and y down, counted from the upper left corner of the upper left pixel.
A pixel belongs to the outline that covers its centre. OpenCV also fills what an outline touches, so it draws
on a finer canvas, of which the centres are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

FINER = 4
"""How much finer the canvas is, along both sides."""
MOST_PIXELS = 1 << 28
"""Size of an image that can be drawn on."""
_FRACTION_BITS = 4  # outlines have sub-pixel corners


class Canvas:
    """A label map of a size (rows, columns) that is drawn on; what is drawn later covers what was before."""

    def __init__(self, size: tuple[int, int], *, rest: int = 0) -> None:
        if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
            raise ValueError(
                f"an image of {size[1]}x{size[0]} pixels cannot be drawn on; correct its size"
            )
        self.size = size
        self._label = np.full(size, rest, np.uint8)

    def polygon(self, corners: Sequence[Any] | np.ndarray, value: int) -> None:
        """Fills x, y, x, y, … or [[x, y], …]; ValueError for fewer than three corners."""
        points = as_points(corners)
        if len(points) < 3:
            raise ValueError(
                f"outline of {len(points)} corners, it needs three; correct or remove it"
            )
        # Only the part of the image that the outline can reach.
        most = np.array(self.size[::-1])
        left, top = np.clip(np.floor(points.min(0)), 0, most).astype(int)
        right, bottom = np.clip(np.ceil(points.max(0)) + 1, 0, most).astype(int)
        if left >= right or top >= bottom:
            return
        fine = np.zeros(((bottom - top) * FINER, (right - left) * FINER), np.uint8)
        # OpenCV counts from the centre of a pixel.
        points = np.clip((points - (left, top)) * FINER - 0.5, -1e6, 1e6)
        fixed = np.round(points * 2**_FRACTION_BITS).astype(np.int32).reshape(-1, 1, 2)
        cv2.fillPoly(fine, [fixed], 1, cv2.LINE_8, _FRACTION_BITS)
        inside = fine[FINER // 2 :: FINER, FINER // 2 :: FINER] > 0
        self._label[top:bottom, left:right][inside] = value

    def rectangle(self, left: float, top: float, right: float, bottom: float, value: int) -> None:
        """Fills a rectangle."""
        self.polygon([left, top, right, top, right, bottom, left, bottom], value)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, value: int) -> None:
        """Fills an ellipse around (x, y)."""
        angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
        corners = (x + radius_x * np.cos(angles), y + radius_y * np.sin(angles))
        self.polygon(np.stack(corners, axis=-1), value)

    def mask(self, inside: np.ndarray, value: int, *, left: int = 0, top: int = 0) -> None:
        """Fills the pixels of a bool map whose corner lies at (left, top)."""
        rows, columns = inside.shape
        cut = inside[max(0, -top) :, max(0, -left) :]
        place = self._label[max(0, top) : max(0, top + rows), max(0, left) : max(0, left + columns)]
        place[cut[: place.shape[0], : place.shape[1]]] = value

    def label(self) -> np.ndarray:
        """The label map, uint8 [h, w]."""
        return self._label


def as_points(corners: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Corners x, y, x, y, … or [[x, y], …] as float64 [n, 2]; ValueError unless they are pairs of numbers."""
    try:
        points = np.asarray(corners, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        points = np.array([[np.nan, np.nan]])
    if not np.isfinite(points).all():
        raise ValueError(
            f"an outline has a corner that is no pair of numbers ({str(corners)[:80]}); correct it"
        )
    return points


def run_lengths(counts: Sequence[int] | str | bytes, size: tuple[int, int]) -> np.ndarray:
    """COCO's lengths of runs outside, inside, outside, … down the columns, as bool [h, w].

    Text is COCO's compressed form.

    Raises:
      ValueError: the runs do not add up to the image.
    """
    if isinstance(counts, str | bytes):
        counts = _decompressed(counts.encode() if isinstance(counts, str) else counts)
    if sum(counts) != size[0] * size[1] or min(counts, default=0) < 0:
        raise ValueError(f"run lengths of {sum(counts)} pixels for an image of {size[1]}x{size[0]}")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(size[1], size[0]).T


def _decompressed(text: bytes) -> list[int]:
    """Groups of six bits from 48 on, five of the number each, the lowest first; bit 6 says that more follow.

    From the fourth on, numbers are differences to the last but one.
    """
    counts: list[int] = []
    position = 0
    while position < len(text):
        number, shift, more = 0, 0, True
        while more:
            if position == len(text):
                raise ValueError("compressed run lengths that are cut off")
            group = text[position] - 48
            number |= (group & 31) << shift
            more = bool(group & 32)
            position, shift = position + 1, shift + 5
        if group & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    return counts


def draw_segmentation(canvas: Canvas, segmentation: Any, value: int) -> None:
    """Draws COCO's outlines (lists of x, y, …) or run lengths {"counts", "size"}."""
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size", canvas.size)
        if size not in (canvas.size, list(canvas.size)):
            raise ValueError(
                f"run lengths of size {size} for an image of {canvas.size}; correct them"
            )
        counts = segmentation.get("counts")
        whole = isinstance(counts, list) and all(isinstance(count, int) for count in counts)
        if not whole and not isinstance(counts, str):
            raise ValueError(
                f"run lengths that are no whole numbers ({str(counts)[:80]}); correct them"
            )
        canvas.mask(run_lengths(counts, canvas.size), value)
        return
    for corners in segmentation:
        canvas.polygon(corners, value)
