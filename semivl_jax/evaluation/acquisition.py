"""Which images or regions are worth a label: where a prediction is uncertain and classes meet. Host, NumPy.

In: class probabilities float32 [h, w, n] of an image. Out: score maps float64 [h, w], and places of regions.
Windows have 2 · radius + 1 pixels a side and end at the image's border. Logarithms are natural, divided by
log n where it says so: scores then lie between 0 and 1.

Source: RIPU (arXiv 2111.12940) for impurity, uncertainty and the greedy choice of regions. The choice of
whole images by score and by distance of their classes is this project's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer

EPSILON = 1e-6

Map = Float64[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """Maps of one image: entropy of each pixel, and of the windows around it.

    impurity: entropy of the shares of the predicted classes in the window.
    uncertainty: mean entropy of the pixels in the window.
    """

    entropy: Map
    impurity: Map
    uncertainty: Map

    @property
    def score(self) -> Map:
        """High where classes meet and the model hesitates."""
        return self.impurity * self.uncertainty


def acquisition(
    probabilities: Float[np.ndarray, "h w n"], *, radius: int, classes: int | None = None
) -> Acquisition:
    """The maps of an image, divided by log(classes); `classes` default to n, 1: natural units are kept."""
    count = probabilities.shape[-1] if classes is None else classes
    unit = np.log(count) if count > 1 else 1.0
    label = probabilities.argmax(-1)
    probabilities = probabilities.astype(np.float64)
    entropy = -(probabilities * np.log(probabilities + EPSILON)).sum(-1)
    area = window_sum(np.ones(label.shape), radius)
    impurity = np.zeros(label.shape)
    for value in np.unique(label):
        share = window_sum(label == value, radius) / area
        impurity -= share * np.log(share + EPSILON)
    uncertainty = window_sum(entropy, radius) / area
    return Acquisition(entropy / unit, impurity / unit, uncertainty / unit)


def window_sum(values: Float[np.ndarray, "h w"] | Bool[np.ndarray, "h w"], radius: int) -> Map:
    """Sum over the window of every pixel; there is nothing outside the image."""
    for axis in (0, 1):
        length = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values, np.float64).take([0], axis),
                               np.cumsum(values, axis, dtype=np.float64)], axis)  # fmt: skip
        place = np.arange(length)
        upper, lower = np.minimum(place + radius + 1, length), np.maximum(place - radius, 0)
        values = sums.take(upper, axis) - sums.take(lower, axis)
    return values


def window(row: int, column: int, radius: int) -> tuple[slice, slice]:
    """The window around a pixel, as an index."""
    return (
        slice(max(row - radius, 0), row + radius + 1),
        slice(max(column - radius, 0), column + radius + 1),
    )


def pick_regions(
    score: Map, count: int, *, block_radius: int, blocked: Bool[np.ndarray, "h w"]
) -> list[tuple[int, int]]:
    """(row, column) of up to `count` regions, best first; fewer where every pixel is blocked.

    Each blocks the window of `block_radius` around it, also in `blocked`, which is changed. Of equal scores
    the first column counts, then the first row.
    """
    columns_first = np.where(blocked, -np.inf, score).T.copy()
    picks: list[tuple[int, int]] = []
    while len(picks) < count:
        column, row = np.unravel_index(columns_first.argmax(), columns_first.shape)
        if columns_first[column, row] == -np.inf:
            break
        picks.append((int(row), int(column)))
        around = window(int(row), int(column), block_radius)
        blocked[around] = True
        columns_first[around[::-1]] = -np.inf
    return picks


def class_shares(
    label: Integer[np.ndarray, "h w"], *, num_classes: int
) -> Float64[np.ndarray, " n"]:
    """Share of each class in a label map."""
    counts = np.bincount(label.ravel(), minlength=num_classes)[:num_classes]
    return counts / max(counts.sum(), 1)


def pick_images(
    scores: Sequence[float],
    shares: Float64[np.ndarray, "images n"],
    count: int,
    *,
    known: Float64[np.ndarray, "labelled n"],
    diversity: float,
) -> list[int]:
    """Indices of up to `count` images, best first.

    Each maximises score · distance ** diversity, where distance is the Hellinger distance of its class shares
    to those of the nearest image that is `known` or already chosen. Without diversity the scores decide.
    """
    distance = np.ones(len(scores))
    for row in known:
        distance = np.minimum(distance, _hellinger(shares, row))
    chosen: list[int] = []
    for _ in range(min(count, len(scores))):
        value = np.asarray(scores, np.float64) * distance**diversity
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        distance = np.minimum(distance, _hellinger(shares, shares[chosen[-1]]))
    return chosen


def _hellinger(
    shares: Float64[np.ndarray, "images n"], other: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " images"]:
    return np.sqrt(((np.sqrt(shares) - np.sqrt(other)) ** 2).sum(-1) / 2)
