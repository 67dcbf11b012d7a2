"""Findings: what tells that unlabelled images will not help, in sentences.

In: a `Run` with an evaluation. Out: `Finding`s about its newest evaluation, whose titles are headings of
docs/troubleshooting.md. The rules are the functions below; the constants are in percent unless said
otherwise. Classes below MIN_SHARE of the pixels that a rule compares are left out.

"True" pixels are those of the unlabelled images on which pseudo-labels are counted
(`evaluation.pseudo_label_eval_images`), as far as these have masks.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from semivl_jax.reporting.read import Run

FEW_LABELLED = 10.0
"""Pixels of unlabelled images with a pseudo-label, below which these are few."""
MISSING = 0.25
"""A class is missing from the pseudo-labels below this multiple of its share of the true pixels or, without
masks, of its share of the labelled masks."""
MIN_IMAGES = 8
"""Without masks: counted images that are expected to show the class, if it is as frequent there as in the
labelled images. With fewer, a small share may be chance."""
LOW_PRECISION = 50.0
"""Pseudo-labels of a class that are right, below which it has wrong pseudo-labels."""
LOW_RECALL = 30.0
"""Validation pixels of a class that are found, below which it is lost …"""
SWALLOWED = 50.0
"""… to the most frequent class, if that is predicted on at least so many of the others."""
MIN_SHARE = 0.1
MOST = 5
"""Classes that a finding names; it counts the others."""
PAGE = "docs/troubleshooting.md"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A sentence or two with numbers and remedy; `title` is the section of docs/troubleshooting.md."""

    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title}: {self.text} See {PAGE}, “{self.title}”."


def findings(run: Run) -> list[Finding]:
    """The findings of the newest evaluation; empty for a good run, and without an evaluation."""
    if not run.evaluations:
        return []
    found = (few(run), missing(run), wrong(run), swallowed(run))
    return [finding for finding in found if finding is not None]


def few(run: Run) -> Finding | None:
    """Fewer than FEW_LABELLED percent of the pixels of unlabelled images have a pseudo-label."""
    counts = run.evaluations[-1].labels.get("pseudo")
    if counts is None or not counts.any():
        return None
    labelled = 100 * counts[:, :-1].sum() / counts.sum()
    if labelled >= FEW_LABELLED:
        return None
    return Finding(
        "Few pseudo-labels",
        f"at step {run.evaluations[-1].step}: {labelled:.1f} % of the pixels of unlabelled images have one. "
        "These images change little. Train longer, or lower method.confidence_threshold.",
    )


def missing(run: Run) -> Finding | None:
    """Classes whose share of the pseudo-labels is below MISSING times their share of the pixels.

    Compared are the true pixels, if there are any; else those of the labelled masks, for classes of which at
    least MIN_IMAGES of the counted images are expected to show some. With guidance, a class must be missing
    from its labels, too.
    """
    newest = run.evaluations[-1]
    counts = newest.labels.get("pseudo")
    if counts is None or not counts[:, :-1].any():
        return None
    if counts[:-1].any():
        rows = slice(-1)  # the same pixels
        expected, where = shares(counts[rows].sum(1)), "true pixels"
    else:
        rows = slice(None)
        expected, where = _labelled_shares(run), "pixels of the labelled masks"
    found = shares(counts[rows, :-1].sum(0))
    guidance = newest.labels.get("guidance", np.zeros_like(counts))
    guided = np.nan_to_num(shares(guidance[rows, :-1].sum(0)))
    predicted = newest.labels.get("predicted")
    texts = []
    rare = np.maximum(found, guided) < MISSING * expected
    for i in np.flatnonzero((expected >= MIN_SHARE) & rare):
        text = f"{found[i]:.1f} % of the pseudo-labels"
        if predicted is not None:
            text += f", {shares(predicted[rows, :-1].sum(0))[i]:.1f} % of all predictions"
        texts.append(f"{run.classes[i]} ({text}, {expected[i]:.1f} % of the {where})")
    return _finding(
        "Classes missing from the pseudo-labels",
        run,
        texts,
        "Unlabelled images teach the model to miss them. Label more images of them, or use a threshold per "
        "class.",
    )  # fmt: skip


def wrong(run: Run) -> Finding | None:
    """Classes with fewer than LOW_PRECISION percent right pseudo-labels, on images with masks."""
    counts = run.evaluations[-1].labels.get("pseudo")
    if counts is None or not counts[:-1].any():
        return None
    known = counts[:-1, :-1]
    share, precision = shares(known.sum(0)), percent(np.diagonal(known), known.sum(0))
    texts = [
        f"{run.classes[i]} ({precision[i]:.0f} % of its pseudo-labels are right)"
        for i in np.flatnonzero((share >= MIN_SHARE) & (precision < LOW_PRECISION))
    ]
    return _finding(
        "Classes with wrong pseudo-labels",
        run,
        texts,
        "Unlabelled images teach the model these errors. Label more images of the classes that are confused, "
        "or raise method.confidence_threshold.",
    )  # fmt: skip


def swallowed(run: Run) -> Finding | None:
    """Classes with recall below LOW_RECALL on validation images, lost to the most frequent class.

    At least SWALLOWED percent of the pixels that are not found must be predicted as that class.
    """
    counts = run.evaluations[-1].scored
    pixels = counts.sum(1)
    most = int(pixels.argmax())
    lost = pixels - np.diagonal(counts)
    recall, taken = percent(np.diagonal(counts), pixels), percent(counts[:, most], lost)
    low = (shares(pixels) >= MIN_SHARE) & (recall < LOW_RECALL) & (taken >= SWALLOWED)
    texts = [
        f"{run.classes[i]} ({recall[i]:.0f} % of its validation pixels are found, {taken[i]:.0f} % of the "
        f"others are called {run.classes[most]})"
        for i in np.flatnonzero(low)
        if i != most
    ]  # fmt: skip
    return _finding(
        "Classes predicted as the most frequent class",
        run,
        texts,
        "Label more images of them, or raise data.rare_class_share.",
    )


def _finding(title: str, run: Run, texts: list[str], remedy: str) -> Finding | None:
    if not texts:
        return None
    more = f" and {len(texts) - MOST} more" if len(texts) > MOST else ""
    listed = f"{', '.join(texts[:MOST])}{more}"
    return Finding(title, f"at step {run.evaluations[-1].step}: {listed}. {remedy}")


def _labelled_shares(run: Run) -> np.ndarray:
    """Shares of the labelled masks' pixels, 0 for classes with too few expected images."""
    balance = run.metadata.get("balance", {}).get("labelled")
    images = run.metadata.get("images")
    if not balance or not images:
        return np.zeros(len(run.classes))
    most = run.config.get("evaluation", {}).get("pseudo_label_eval_images", 0)
    counted = min(most, images["unlabelled"])
    expected = counted * np.asarray(balance["images"]) / max(1, images["labelled"])
    return np.where(expected >= MIN_IMAGES, shares(balance["pixels"]), 0)


def shares(pixels: ArrayLike) -> np.ndarray:
    """Percent of the sum; NaN where that is 0."""
    array = np.asarray(pixels)
    return percent(array, np.full(array.shape, array.sum()))


def percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 · part / whole; NaN where `whole` is 0."""
    return 100 * part / np.where(whole > 0, whole, np.nan)
