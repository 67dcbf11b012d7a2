"""Charts of a report, as JSON that `charts.js` draws.

In: `Run`s. Out: `Chart`s. Every metric that a run logged gets a line. Metrics are grouped by the first word
of their name, so the metrics of a new method are shown without a change here. The JSON of a chart is one of

    lines  {kind, unit, log, points, series: [{name, colour, x, y, low, high}]}   null: not finite
    bars   {kind, unit, log, names, series: [{name, colour, y}]}                  one value per name
    grid   {kind, unit, names, rows, columns, cells}   percent × 10 as integers, row after row
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from semivl_jax.reporting.read import Curve, Run

POINTS = 400
"""Most points of a curve on the page."""
COLOURS = ("#3b82f6", "#e8590c", "#12a150", "#a855f7", "#d6336c", "#0ca5b0", "#b8860b", "#7a8699")
"""Legible on a white and on a dark background."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, and its numbers as a table for readers without sight or JavaScript."""

    id: str
    title: str
    about: str
    figure: dict[str, Any]
    """The JSON; see the module's docstring."""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    wide: bool = False
    height: int | None = None


@dataclasses.dataclass(frozen=True)
class _Group:
    """Metrics in one chart; `log` None: logarithmic where the values span two orders of magnitude."""

    title: str
    about: str
    unit: str = ""
    log: bool | None = None


_GROUPS = {
    "eval/miou": _Group("Validation mIoU", "Mean over all classes, percent, at every evaluation.",
                        " %", False),
    "train/loss": _Group("Losses", "Long curves are means over neighbouring steps; the band spans the lowest "
                         "and highest values.", log=True),
    "train/guidance": _Group("Guidance losses", "Disagreement with the labels of the frozen CLIP.",
                             log=False),
    "eval/right": _Group("Label accuracy", "On unlabelled training images whose masks exist: share of the "
                         "labelled pixels whose label is right, percent.", " %", False),
    "eval/labelled": _Group("Label coverage", "On unlabelled training images: share of the pixels that get a "
                            "label, percent.", " %", False),
    "eval/drift": _Group("Drift of the classes", "Total variation distance between the classes of the "
                         "labels of unlabelled images and those of the labelled masks, percent. 0: the same "
                         "shares; 100: no class in common.", " %", False),
    "train/share": _Group("Labelled share of the batch", "Share of the unlabelled images' pixels that get a "
                          "label.", log=False),
    "train/lr": _Group("Learning rates", "By parameter group.", log=True),
    "train/gradient": _Group("Gradient norm", "Of all trained parameters together.", log=True),
    "train/images": _Group("Images per second", "Labelled and unlabelled together, without evaluations.",
                           log=False),
}  # fmt: skip
"""Titles of known groups. Other metrics get their name as the title."""

_LABELS = {
    "eval/miou": ("eval/miou", "student"),
    "eval/miou_ema": ("eval/miou", "EMA"),
    "train/loss": ("train/loss", "total"),
    "train/loss_x": ("train/loss", "supervised"),
    "eval/pseudo_right": ("eval/right", "pseudo-label"),
    "eval/predicted_right": ("eval/right", "all predictions"),
    "eval/guidance_right": ("eval/right", "guidance"),
    "eval/pseudo_labelled": ("eval/labelled", "pseudo-label"),
    "eval/guidance_labelled": ("eval/labelled", "guidance"),
    "eval/pseudo_drift": ("eval/drift", "pseudo-label"),
    "eval/predicted_drift": ("eval/drift", "all predictions"),
    "eval/guidance_drift": ("eval/drift", "guidance"),
    "train/confident": ("train/share", "pseudo-label"),
    "train/guidance_share": ("train/share", "guidance"),
    "train/gradient_norm": ("train/gradient", ""),
    "train/images_per_s": ("train/images", ""),
}
"""Group and label of metrics that the rule of `group_and_label` would not place well."""


def group_and_label(metric: str) -> tuple[str, str]:
    """Group and label of a metric: "train/loss_s1" is the line "s1" of the group "train/loss".

    The label is empty for the only metric of a group.
    """
    if metric in _LABELS:
        return _LABELS[metric]
    part, name = metric.split("/", 1) if "/" in metric else ("", metric)
    first, *rest = re.split("[_/]", name, maxsplit=1)
    return f"{part}/{first}", rest[0] if rest else ""


def class_metrics(run: Run) -> dict[str, dict[str, Curve]]:
    """Metrics with one value per class, logged as PART/NAME/CLASS: PART/NAME → class → curve.

    While the names of the classes are unknown, every metric of three parts counts as one.
    """
    found: dict[str, dict[str, Curve]] = {}
    for metric, curve in run.curves.items():
        parts = metric.split("/", 2)
        if len(parts) == 3 and (not run.classes or parts[2] in run.classes):
            found.setdefault("/".join(parts[:2]), {})[parts[2]] = curve
    return found


def curves(runs: Sequence[Run]) -> list[Chart]:
    """A chart per group of metrics; with several runs one per metric, each line a run.

    Metrics with one value per class are in the table of classes instead.
    """
    several = len(runs) > 1
    charts: dict[tuple[str, str], list[tuple[str, Curve]]] = {}
    for run in runs:
        of_classes = {f"{name}/{label}" for name, of in class_metrics(run).items() for label in of}
        for metric in sorted(run.curves, key=_order):
            curve = run.curves[metric]
            if metric in of_classes or not np.isfinite(curve[1]).any():
                continue
            group, label = group_and_label(metric)
            if several and group == "eval/miou":
                if metric != run.score:
                    continue
                label = ""  # runs with and without an EMA in one chart
            key = (group, label if several else "")
            charts.setdefault(key, []).append((run.name if several else label, curve))
    rank = {group: number for number, group in enumerate(_GROUPS)}
    ordered = sorted(charts.items(), key=lambda item: rank.get(item[0][0], len(rank)))
    return [_curve_chart(group, label, lines) for (group, label), lines in ordered]


def _order(metric: str) -> tuple[int, str]:
    known = list(_LABELS)
    return (known.index(metric) if metric in known else len(known)), metric


def _curve_chart(group: str, label: str, lines: list[tuple[str, Curve]]) -> Chart:
    of = _GROUPS.get(group, _Group(group.partition("/")[2].capitalize(), f"Logged as {group}."))
    finite = np.concatenate([values[np.isfinite(values)] for _, (_, values) in lines])
    log = finite.min() > 0 and finite.max() > 100 * finite.min() if of.log is None else of.log
    series, rows = [], []
    for number, (name, curve) in enumerate(lines):
        thinned = thin(curve)
        values = [thinned.mean, thinned.low, thinned.high]
        if log:
            values = [np.where(part > 0, part, np.nan) for part in values]
        mean, low, high = (_json_values(part) for part in values)
        line = {"name": name or of.title, "colour": COLOURS[number % len(COLOURS)]}
        line |= {"x": thinned.steps.tolist(), "y": mean}
        series.append(line if low == high else {**line, "low": low, "high": high})
        own = curve[1][np.isfinite(curve[1])]
        numbers = (f"{value:.4g}" for value in (own[0], own[-1], own.min(), own.max()))
        rows.append((name or of.title, *numbers, str(int(curve[0][-1]))))
    sparse = all(len(steps) <= 60 for _, (steps, _) in lines)
    return Chart(
        id="-".join(filter(None, (group.replace("/", "-"), label))),
        title=f"{of.title}: {label}" if label else of.title,
        about=of.about,
        head=("", "first", "last", "lowest", "highest", "last step"),
        rows=tuple(rows),
        figure={"kind": "lines", "unit": of.unit, "log": bool(log), "points": sparse, "series": series},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinned:
    """A curve at no more than POINTS steps: mean, lowest and highest value of neighbouring steps.

    NaN where none of the values was finite.
    """

    steps: Int64[np.ndarray, " n"]
    mean: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"]
    high: Float64[np.ndarray, " n"]


def thin(curve: Curve) -> Thinned:
    """At most POINTS points from the first to the last step; every extreme is in `low` or `high`."""
    steps, values = curve
    if len(steps) <= POINTS:
        return Thinned(steps=steps, mean=values, low=values, high=values)
    parts = np.array_split(np.arange(len(steps)), POINTS)
    middle = [int(steps[part].mean()) for part in parts[1:-1]]
    return Thinned(
        steps=np.asarray([steps[0], *middle, steps[-1]], np.int64),
        mean=np.asarray([_finite(np.mean, values[part]) for part in parts]),
        low=np.asarray([_finite(np.min, values[part]) for part in parts]),
        high=np.asarray([_finite(np.max, values[part]) for part in parts]),
    )


def _finite(function: Callable[..., Any], values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(function(finite)) if finite.size else float("nan")


def confusion(run: Run) -> Chart | None:
    """The confusion matrix of the newest evaluation, rows in percent of the labelled pixels."""
    if not run.evaluations:
        return None
    newest, names = run.evaluations[-1], run.classes
    share = 100 * newest.scored / np.maximum(newest.scored.sum(1, keepdims=True), 1)
    off = share.copy()
    np.fill_diagonal(off, 0)
    worst = np.dstack(np.unravel_index(np.argsort(off, axis=None)[::-1][:12], off.shape))[0]
    return Chart(
        id="confusion",
        title="Confusion matrix",
        about=f"Percent of each true class's pixels by prediction, step {newest.step}.",
        wide=True,
        height=min(760, 150 + 36 * max(6, len(names))),
        figure={
            "kind": "grid",
            "unit": " %",
            "names": names,
            "rows": "truth",
            "columns": "prediction",
            "cells": np.rint(10 * share).astype(int).ravel().tolist(),
        },
        head=("truth", "predicted as", "share"),
        rows=tuple((names[i], names[j], f"{off[i, j]:.1f} %") for i, j in worst if off[i, j] >= 0.05),
    )  # fmt: skip


def balance(run: Run) -> Chart | None:
    """Share of the pixels by class: labelled images, validation images, predictions, pseudo-labels."""
    known = run.metadata.get("balance")
    if not known:
        return None
    parts = {"labelled images": known["labelled"]["pixels"],
             "validation": known["validation"]["pixels"]}  # fmt: skip
    if run.evaluations:
        newest = run.evaluations[-1]
        parts["predicted in validation"] = newest.scored.sum(0).tolist()
        if "pseudo" in newest.labels:
            parts["pseudo-labels"] = newest.labels["pseudo"][:, :-1].sum(0).tolist()
    series, shares = [], []
    for number, (name, pixels) in enumerate(parts.items()):
        share = 100 * np.asarray(pixels, np.float64) / max(1, sum(pixels))
        shares.append(share)
        values = _json_values(np.where(share > 0, share, np.nan))
        series.append({"name": name, "colour": COLOURS[number], "y": values})
    return Chart(
        id="balance",
        title="Class balance",
        about="Share of the pixels, on a logarithmic axis.",
        wide=True,
        figure={"kind": "bars", "unit": " %", "log": True, "names": run.classes, "series": series},
        head=("class", *parts),
        rows=tuple((name, *(f"{share[i]:.2f} %" for share in shares))
                   for i, name in enumerate(run.classes)),
    )  # fmt: skip


def _json_values(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
