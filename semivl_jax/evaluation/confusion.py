"""Confusion matrix and the scores computed from it.

In: predictions and labels [h, w]. Out: counts, a row per label and a column per prediction, without pixels
labelled 255; IoUs in percent (docs/semivl.md 7). Counting runs on the device in int32, exact up to 2³¹ − 1
pixels per entry: `evaluator` adds up larger counts in int64 on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, Int32, Int64, Integer, UInt8

from semivl_jax.types import IGNORE_INDEX

_WITHOUT = "without absent"


def count(
    prediction: Integer[Array, "h w"], label: UInt8[Array, "h w"], *, num_classes: int
) -> Int32[Array, "{num_classes} {num_classes}"]:
    """Pixels by label and prediction; pixels labelled 255 are left out.

    Values must be below `num_classes`, or 255 in the label (`data.images.check_labels`).
    """
    cells = num_classes * num_classes
    index = label.astype(jnp.int32) * num_classes + prediction.astype(jnp.int32)
    # One more cell takes the ignored pixels, so that nothing has to be compacted.
    index = jnp.where(label == IGNORE_INDEX, cells, index)
    counts = jnp.zeros(cells + 1, jnp.int32).at[index.reshape(-1)].add(1, mode="drop")
    return counts[:cells].reshape(num_classes, num_classes)


def iou(confusion: Int64[np.ndarray, "n n"]) -> Float64[np.ndarray, " n"]:
    """IoU of every class in percent; a class that is neither labelled nor predicted has 0."""
    intersection = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return 100 * intersection / (union + 1e-10)


def present(confusion: Int64[np.ndarray, "n n"]) -> Bool[np.ndarray, " n"]:
    """Classes with at least one labelled pixel."""
    return confusion.sum(1) > 0


def image_iou(confusion: Int64[np.ndarray, "n n"]) -> float:
    """Mean IoU in percent over the classes that an image's label shows; NaN where it shows none.

    Classes that are only predicted are no rows of their own, or one stray pixel would halve the score;
    they count in the unions of the others.
    """
    shown = present(confusion)
    return float(iou(confusion)[shown].mean()) if shown.any() else float("nan")


def format_table(confusion: Int64[np.ndarray, "n n"], names: Sequence[str]) -> str:
    """Per-class table for a terminal: IoU, pixel accuracy and share of the labelled pixels in percent.

    Classes without a labelled pixel are marked "absent"; they still count (0) in the mean, and the mean
    without them stands below it.
    """
    if len(names) != len(confusion):
        raise ValueError(
            f"{len(names)} class names for {len(confusion)} classes: give one per class"
        )
    per_class, labelled = iou(confusion), confusion.sum(1)
    recall = 100 * np.diagonal(confusion) / np.maximum(labelled, 1)
    share = 100 * labelled / max(labelled.sum(), 1)
    known = labelled > 0
    width = max(len("class"), len(_WITHOUT), *(len(name) for name in names))
    head = f"{'class':<{width}}  {'IoU':>6}  {'acc.':>6}  {'pixels':>7}"
    rule = "─" * len(head)
    lines = [head, rule]
    for row, name in enumerate(names):
        there = f"{recall[row]:6.2f}  {share[row]:6.2f}%" if labelled[row] else f"{'absent':>15}"
        lines.append(f"{name:<{width}}  {per_class[row]:6.2f}  {there}")
    accuracy = recall[known].mean() if known.any() else 0.0
    lines += [rule, f"{'mean':<{width}}  {per_class.mean():6.2f}  {accuracy:6.2f}"]
    if known.any() and not known.all():
        lines.append(f"{_WITHOUT:<{width}}  {per_class[known].mean():6.2f}")
    return "\n".join(lines)
