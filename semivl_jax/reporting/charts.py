"""Figures of a report: what `charts.js` draws, as JSON types; curves thinned to what a screen can show.

In: `Run`s. Out: `Chart`s. A figure is one of

    lines  {kind, unit, log, points, series: [{name, colour, x, y, low, high}]}   null: not finite
    bars   {kind, unit, log, names, series: [{name, colour, y}]}                  one value per name
    grid   {kind, unit, names, rows, columns, cells}   percent × 10 as integers, row after row

Axes, grid lines and text have the colours of the page, light or dark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from semivl_jax.reporting.read import Curve, Run

POINTS = 400
"""Most points of a curve on the page."""
COLOURS = ("#3b82f6", "#e8590c", "#12a150", "#a855f7", "#d6336c", "#0ca5b0", "#b8860b", "#7a8699")
"""Legible on white and on near-black alike."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with what a reader without sight or script gets: a sentence and a few rows."""

    id: str
    title: str
    about: str
    figure: dict[str, Any]
    """What the page draws; the module's docstring has the three kinds."""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    wide: bool = False
    height: int | None = None


def curves(runs: Sequence[Run]) -> list[Chart]:
    """The curves that the runs have; with several runs each line is a run."""
    made = []
    for id, title, about, unit, log, series in _PLOTS:
        lines = list(_lines(runs, series))
        if lines:
            made.append(_curve_chart(id, title, about, lines, unit=unit, log=log))
    return made


_PLOTS = (
    ("miou", "Validation mIoU", "Mean over all classes, percent, at every evaluation.", " %", False,
     {"eval/miou_ema": "average (EMA)", "eval/miou": "student"}),
    ("loss", "Losses", "Total, supervised, and consistency of the two strong views (s1, s2) and the "
     "perturbed view (fp); long curves are means over neighbouring steps, in a band from their lowest to "
     "their highest value.", "", True,
     {"train/loss": "total", "train/loss_x": "supervised", "train/loss_s1": "s1",
      "train/loss_s2": "s2", "train/loss_fp": "fp"}),
    ("guidance-loss", "Guidance losses", "Disagreement with the frozen CLIP's labels.", "", False,
     {"train/guidance_s1": "s1", "train/guidance_s2": "s2", "train/guidance_fp": "fp"}),
    ("quality", "Are the labels right?", "On unlabelled training images whose masks exist but were held "
     "back: share of the labelled pixels that is right, percent.", " %", False,
     {"eval/pseudo_right": "pseudo-label", "eval/guidance_right": "guidance"}),
    ("share", "How much is labelled?", "Share of the unlabelled pixels in training batches that get a "
     "pseudo-label or a guidance label.", "", False,
     {"train/confident": "pseudo-label", "train/guidance_share": "guidance"}),
    ("rate", "Learning rates", "By parameter group.", "", True,
     {"train/lr_backbone": "image tower", "train/lr_decoder": "decoder",
      "train/lr_conv_encoder": "convolutions"}),
    ("norm", "Gradient norm", "Of all trained weights together.", "", True,
     {"train/gradient_norm": "norm"}),
    ("speed", "Images per second", "Labelled and unlabelled together, without evaluations.", "", False,
     {"train/images_per_s": "images/s"}),
)  # fmt: skip
_ONE_LINE = ("eval/miou_ema", "train/loss", "train/guidance_fp", "eval/pseudo_right",
             "train/confident", "train/lr_decoder", "train/gradient_norm", "train/images_per_s")  # fmt: skip


def _lines(runs: Sequence[Run], series: dict[str, str]) -> Iterable[tuple[str, Curve]]:
    for run in runs:
        for key, label in series.items():
            fallback = key == "eval/miou" and "eval/miou_ema" not in run.curves
            if len(runs) > 1 and key not in _ONE_LINE and not fallback:
                continue
            if key == "train/lr_conv_encoder" and not _has_conv_encoder(run):
                continue  # a group without parameters
            if key in run.curves and np.isfinite(run.curves[key][1]).any():
                yield (run.name if len(runs) > 1 else label), run.curves[key]


def _has_conv_encoder(run: Run) -> bool:
    return run.config.get("model", {}).get("conv_encoder", "none") != "none"


def _curve_chart(
    id: str, title: str, about: str, lines: list[tuple[str, Curve]], *, unit: str, log: bool
) -> Chart:
    series, rows = [], []
    for number, (label, curve) in enumerate(lines):
        thinned = thin(curve)
        values = [thinned.mean, thinned.low, thinned.high]
        if log:
            values = [np.where(part > 0, part, np.nan) for part in values]
        mean, low, high = (_json_values(part) for part in values)
        line = {"name": label, "colour": COLOURS[number % len(COLOURS)]}
        line |= {"x": thinned.steps.tolist(), "y": mean}
        series.append(line if low == high else {**line, "low": low, "high": high})
        finite = curve[1][np.isfinite(curve[1])]
        rows.append((label, f"{finite[0]:.4g}", f"{finite[-1]:.4g}", f"{finite.min():.4g}",
                     f"{finite.max():.4g}", str(int(curve[0][-1]))))  # fmt: skip
    sparse = all(len(steps) <= 60 for _, (steps, _) in lines)
    figure = {"kind": "lines", "unit": unit, "log": log, "points": sparse, "series": series}
    head = ("", "first", "last", "lowest", "highest", "last step")
    return Chart(id=id, title=title, about=about, head=head, rows=tuple(rows), figure=figure)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinned:
    """A curve at no more than POINTS places: means over neighbouring steps, and their extremes.

    steps int64, the others float64; NaN where no value of the place was finite.
    """

    steps: Int64[np.ndarray, " n"]
    mean: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"]
    high: Float64[np.ndarray, " n"]


def thin(curve: Curve) -> Thinned:
    """At most POINTS places from the first to the last step; every extreme is in `low` or `high`."""
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
    """Which class is taken for which, rows in percent of the labelled pixels."""
    if not run.evaluations:
        return None
    counts = run.evaluations[-1].deciding
    labelled = counts.sum(1, keepdims=True)
    share = 100 * counts / np.maximum(labelled, 1)
    names = run.classes
    figure = {
        "kind": "grid",
        "unit": " %",
        "names": names,
        "rows": "truth",
        "columns": "prediction",
        "cells": np.rint(10 * share).astype(int).ravel().tolist(),
    }
    about = f"Percent of each true class's pixels by prediction, step {run.evaluations[-1].step}."
    off = share.copy()
    np.fill_diagonal(off, 0)
    worst = np.dstack(np.unravel_index(np.argsort(off, axis=None)[::-1][:12], off.shape))[0]
    rows = tuple((names[i], names[j], f"{off[i, j]:.1f} %") for i, j in worst if off[i, j] >= 0.05)
    return Chart(
        id="confusion",
        title="Which class is taken for which",
        about=about,
        wide=True,
        height=min(760, 150 + 36 * max(6, len(names))),
        figure=figure,
        head=("truth", "taken for", "share"),
        rows=rows,
    )


def balance(run: Run) -> Chart | None:
    """How the pixels are spread over the classes: labelled images, validation, predictions."""
    known = run.facts.get("balance")
    if not known:
        return None
    parts = {"labelled images": known["labelled"]["pixels"],
             "validation": known["validation"]["pixels"]}  # fmt: skip
    if run.evaluations:
        parts["predicted"] = run.evaluations[-1].deciding.sum(0).tolist()
    series, shares = [], []
    for number, (name, pixels) in enumerate(parts.items()):
        share = 100 * np.asarray(pixels, np.float64) / max(1, sum(pixels))
        shares.append(share)
        values = _json_values(np.where(share > 0, share, np.nan))
        series.append({"name": name, "colour": COLOURS[number], "y": values})
    figure = {"kind": "bars", "unit": " %", "log": True, "names": run.classes, "series": series}
    rows = tuple(
        (name, *(f"{share[i]:.2f} %" for share in shares)) for i, name in enumerate(run.classes)
    )
    return Chart(id="balance", title="Class balance", wide=True,
                 about="Share of the pixels, on a logarithmic axis.", rows=rows,
                 head=("class", *parts), figure=figure)  # fmt: skip


def _json_values(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
