"""Figures of a report: Plotly data and layout as JSON types, curves thinned to what a screen can show.

In: `Run`s. Out: `Chart`s; colours that depend on light or dark are set by the page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from plotly import graph_objects as go

from semivl_jax.reporting.read import Curve, Run

POINTS = 400
"""Most points of a curve on the page."""
LABELS = 60
"""Most classes whose names stand along an axis."""
COLOURS = ("#3b82f6", "#e8590c", "#12a150", "#a855f7", "#d6336c", "#0ca5b0", "#b8860b", "#7a8699")
"""Legible on white and on near-black alike."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with what a reader without sight or script gets: a sentence and a few rows."""

    id: str
    title: str
    about: str
    figure: dict[str, Any]
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
     "perturbed view (fp); long curves are means over neighbouring steps.", "", True,
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
    traces, rows = [], []
    sparse = all(len(steps) <= 60 for _, (steps, _) in lines)
    for number, (label, curve) in enumerate(lines):
        steps, values = thin(curve)
        if log:
            values = np.where(values > 0, values, np.nan)
        traces.append(
            go.Scatter(
                x=steps.tolist(),
                y=_json_values(values),
                name=label,
                mode="lines+markers" if sparse else "lines",
                line={"color": COLOURS[number % len(COLOURS)], "width": 2},
                marker={"size": 6},
                hovertemplate=f"%{{y:.4~g}}{unit}",
            )
        )
        finite = curve[1][np.isfinite(curve[1])]
        rows.append((label, f"{finite[0]:.4g}", f"{finite[-1]:.4g}", f"{finite.min():.4g}",
                     f"{finite.max():.4g}", str(int(curve[0][-1]))))  # fmt: skip
    axis = {"type": "log" if log else "linear", "ticksuffix": unit}
    layout = go.Layout(
        yaxis=axis, xaxis={"title": {"text": "step"}}, hovermode="x unified", showlegend=False
    )
    head = ("", "first", "last", "lowest", "highest", "last step")
    return Chart(id=id, title=title, about=about, head=head, rows=tuple(rows),
                 figure=_figure(traces, layout))  # fmt: skip


def thin(
    curve: Curve,
) -> tuple[Int64[np.ndarray, " thinned"], Float64[np.ndarray, " thinned"]]:
    """At most POINTS points: means over neighbouring steps, the first and the last point kept."""
    steps, values = curve
    if len(steps) <= POINTS:
        return curve
    inner = np.array_split(np.arange(1, len(steps) - 1), POINTS - 2)
    x = [steps[0], *(int(steps[part].mean()) for part in inner), steps[-1]]
    y = [values[0], *(_mean(values[part]) for part in inner), values[-1]]
    return np.asarray(x, np.int64), np.asarray(y, np.float64)


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def confusion(run: Run) -> Chart | None:
    """Which class is taken for which, rows in percent of the labelled pixels."""
    if not run.evaluations:
        return None
    counts = run.evaluations[-1].deciding
    labelled = counts.sum(1, keepdims=True)
    share = 100 * counts / np.maximum(labelled, 1)
    names = run.classes
    trace = go.Heatmap(
        z=np.round(share, 1).tolist(),
        x=names,
        y=names,
        zmin=0,
        zmax=100,
        hovertemplate="%{y} taken for %{x}: %{z} %<extra></extra>",
        colorscale=[[0, "rgba(59,130,246,0.04)"], [0.02, "rgba(59,130,246,0.22)"],
                    [0.3, "#3b82f6"], [0.7, "#7c3aed"], [1, "#f59e0b"]],
        colorbar={"ticksuffix": " %", "thickness": 10, "outlinewidth": 0},
    )  # fmt: skip
    layout = go.Layout(
        xaxis={"title": {"text": "prediction"}, **_categories(names)},
        yaxis={"title": {"text": "truth"}, "autorange": "reversed", **_categories(names)},
    )
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
        height=min(900, 150 + 36 * max(6, len(names))),
        figure=_figure([trace], layout),
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
    traces, shares = [], []
    for number, (name, pixels) in enumerate(parts.items()):
        share = 100 * np.asarray(pixels, np.float64) / max(1, sum(pixels))
        shares.append(share)
        traces.append(
            go.Bar(x=run.classes, y=np.round(share, 4).tolist(), name=name,
                   marker={"color": COLOURS[number]}, hovertemplate="%{y:.3~g} %")
        )  # fmt: skip
    layout = go.Layout(
        yaxis={"type": "log", "ticksuffix": " %"}, xaxis=_categories(run.classes),
        hovermode="x unified", showlegend=False, barmode="group",
    )  # fmt: skip
    rows = tuple(
        (name, *(f"{share[i]:.2f} %" for share in shares)) for i, name in enumerate(run.classes)
    )
    return Chart(id="balance", title="Class balance", wide=True,
                 about="Share of the pixels, on a logarithmic axis.", rows=rows,
                 head=("class", *parts), figure=_figure(traces, layout))  # fmt: skip


def _categories(names: Sequence[str]) -> dict[str, Any]:
    """An axis of class names; where they would not fit, pointing at the chart still names them."""
    return {"type": "category", "showticklabels": len(names) <= LABELS}


def _figure(traces: list[Any], layout: go.Layout) -> dict[str, Any]:
    """Data and layout that Plotly has checked, as JSON types without its default template."""
    return {"data": [trace.to_plotly_json() for trace in traces], "layout": layout.to_plotly_json()}


def _json_values(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
