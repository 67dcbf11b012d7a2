"""Runs → one self-contained HTML page.

Styles, scripts, pictures (as data addresses) and the chart library are inside the page, so it makes no
request. Text, tables and pictures are static HTML; charts are drawn when it opens. The chart library is
uPlot 1.6.32 (https://github.com/leeoniya/uPlot, MIT, 51 kB); the folder `uplot` has its npm package.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from semivl_jax import utils
from semivl_jax.evaluation.confusion import iou as class_iou
from semivl_jax.reporting import charts, checks, read
from semivl_jax.reporting.read import Run

NAME = "report.html"
SAMPLES = 16
"""Most validation images on a page, over all runs."""
_KINDS = {
    "image": "image", "truth": "ground truth", "prediction": "prediction", "error": "errors",
    "pseudo": "pseudo-label", "confidence": "confidence", "guidance": "guidance",
}  # fmt: skip
"""Order and titles of the pictures of a validation image."""
_OF_LABELS = ("share", "precision", "coverage")
"""Metrics per class that have a table of their own."""
_OUTCOMES = {
    "running": "running, or killed",
    "stopped": "stopped by a signal, saved",
    "killed": "killed",
    "failed": "ended with an error",
    "finished": "finished",
}
_HERE = Path(__file__).parent


def write(workdirs: Sequence[Path], path: Path) -> Path:
    """Writes the page about these runs.

    Raises:
      ValueError: one of the folders is not a workdir.
      OSError: the page cannot be written.
    """
    runs = [read.load(folder, name=name) for folder, name in _names(workdirs)]
    utils.write_text(path, render(runs))
    return path


def write_after_training(workdir: Path) -> Path | None:
    """Writes the page of a run into its workdir. An error is printed and does not end the run."""
    try:
        return write([workdir], workdir / NAME)
    except Exception as error:
        print(
            f"the report could not be written ({type(error).__name__}: {error}); the run is not affected, "
            f"try python -m semivl_jax.report {workdir}",
            file=sys.stderr,
        )
        return None


def _names(workdirs: Sequence[Path]) -> list[tuple[Path, str]]:
    """Folders with their names; folders of the same name get their parent's before it."""
    resolved = [folder.resolve() for folder in workdirs]
    short = [folder.name for folder in resolved]
    names = [
        name if short.count(name) == 1 else f"{folder.parent.name}/{name}"
        for name, folder in zip(short, resolved, strict=True)
    ]
    return list(zip(workdirs, names, strict=True))


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    shared = charts.curves(runs)
    sections = [_section(run, number, runs) for number, run in enumerate(runs)]
    figures = {chart.id: chart.figure for chart in shared}
    for section in sections:
        for chart in section["charts"]:
            figures[f"{chart.id}-{section['number']}"] = chart.figure
    return environment.get_template("page.html.jinja").render(
        title=runs[0].name if len(runs) == 1 else "Comparison of runs",
        curves=shared,
        sections=sections,
        comparison=_comparison(runs) if len(runs) > 1 else None,
        style=_file("page.css"),
        script=_file("page.js"),
        figures=_json(figures),
        legends=_json({str(s["number"]): s["legend"] for s in sections}),
        charts=_file("charts.js"),
        library=_file("uplot/uPlot.iife.min.js"),
        library_style=_file("uplot/uPlot.min.css"),
    )


def _section(run: Run, number: int, runs: Sequence[Run]) -> dict[str, Any]:
    palette = (run.samples or run.metadata).get("palette", [])
    legend = [
        {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in zip(run.classes, palette, strict=False)
    ]
    return {
        "number": number,
        "name": run.name,
        "summary": _summary(run),
        "sessions": [_session(session) for session in run.sessions],
        "config": json.dumps(run.config, indent=1, ensure_ascii=False),
        "charts": [chart for chart in (charts.confusion(run), charts.balance(run)) if chart],
        "findings": checks.findings(run),
        "classes": _classes(run, legend),
        "labels": _labels(run),
        "guidance": _guidance(run),
        "evaluations": [evaluation.step for evaluation in run.evaluations],
        "samples": _samples(run, most=max(2, SAMPLES // len(runs))),
        "samples_step": (run.samples or {}).get("step"),
        "legend": legend,
    }


def _summary(run: Run) -> list[tuple[str, str]]:
    """Label and value of what is shown first."""
    metadata, best, last = run.metadata, run.best(), (run.sessions or [{}])[-1]
    rows = []
    if best is not None:
        rows.append(("best mIoU", f"{best[1]:.2f} % at step {best[0]:,}"))
    total = metadata.get("total_steps")
    rows.append(("steps", f"{run.steps:,}" + (f" of {total:,}" if total else "")))
    rows.append(("data", metadata.get("dataset", run.config.get("data", {}).get("dataset", "?"))))
    if images := metadata.get("images"):
        parts = ("labelled", "unlabelled", "validation")
        rows.append(("images", ", ".join(f"{images[part]:,} {part}" for part in parts)))
    if seconds := sum(session.get("seconds", 0) for session in run.sessions):
        rows.append(("duration", _duration(seconds)))
    _, rates = run.curves.get("train/images_per_s", (None, np.zeros(0)))
    rates = rates[1:][np.isfinite(rates[1:])]  # the first value includes compilation
    if rates.size:
        rows.append(("speed", f"{np.median(rates):.1f} images/s (median)"))
    if devices := last.get("devices"):
        cores = f"{devices['cpu_cores']} CPU cores"
        kind = f"{devices['count']} × {devices['kind']}, {cores}"
        rows.append(("devices", cores if devices["platform"] == "cpu" else kind))
    if versions := last.get("versions"):
        named = [name for name in ("semivl_jax", "jax", "python") if name in versions]
        rows.append(("versions", ", ".join(f"{name} {versions[name]}" for name in named)))
    if source := last.get("source"):
        rows.append(("source", source["commit"][:10] + (", modified" if source["changed"] else "")))
    if last:
        rows.append(("state", _OUTCOMES.get(last["outcome"], last["outcome"])))
    return rows


def _session(session: Mapping[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    seconds = session.get("seconds")
    return {
        "started": session["started"].replace("T", " ").replace("+00:00", " UTC"),
        "steps": f"{session['first_step']:,} – {session.get('last_step', '…')}",
        "duration": _duration(seconds) if seconds is not None else "…",
        "outcome": session["outcome"],
        "command": session["command"],
        "versions": versions,
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _classes(run: Run, legend: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """The table of classes; `columns` are (head, values), None where a value is undefined."""
    if not run.evaluations:
        return None
    newest, oldest = run.evaluations[-1], run.evaluations[0]
    counts, labelled = newest.scored, newest.scored.sum(1)
    iou = [
        float(value) if labelled[i] or counts[:, i].any() else None
        for i, value in enumerate(class_iou(counts))
    ]
    delta: list[float | None] = [None] * len(iou)
    if newest is not oldest:
        delta = (class_iou(counts) - class_iou(oldest.scored)).tolist()
    columns = [
        ("accuracy", _percent(np.diagonal(counts), labelled)),
        ("pixels", _shares(labelled)),
    ]
    if images := run.metadata.get("balance", {}).get("labelled", {}).get("images"):
        columns.append(("labelled images", [str(number) for number in images]))
    counted = {f"eval/{kind}_{of}" for kind in newest.labels for of in _OF_LABELS}
    for metric, by_class in charts.class_metrics(run).items():
        if metric not in {"eval/iou", *counted}:
            values = [by_class[name][1][-1] if name in by_class else None for name in run.classes]
            shown = ["–" if value is None else f"{value:.4g}" for value in values]
            columns.append((metric.partition("/")[2].replace("_", " "), shown))
    colours = [entry["colour"] for entry in legend] or ["#888888"] * len(iou)
    rows = zip(
        run.classes, colours, iou, delta, zip(*(c for _, c in columns), strict=True), strict=True
    )
    return {
        "head": ["class", "IoU", "Δ", *(head for head, _ in columns)],
        "rows": [dict(zip(("name", "colour", "iou", "delta", "cells"), row, strict=True)) for row in rows],
    }  # fmt: skip


def _labels(run: Run) -> list[dict[str, Any]]:
    """A table of classes for each kind of label of unlabelled images: title, head, rows of text."""
    if not run.evaluations:
        return []
    counts = dict(run.evaluations[-1].labels)
    balance = run.metadata.get("balance", {}).get("labelled")
    predicted = counts.pop("predicted", None)
    tables = []
    for kind in sorted(counts, key=lambda kind: (kind != "pseudo", kind)):
        pixels = counts[kind]
        known, true = pixels[:-1], pixels[:-1].sum(1)
        columns = [("labelled masks", _shares(balance["pixels"]))] if balance else []
        if known.any():
            columns.append(("true pixels", _shares(true)))
        if predicted is not None and kind == "pseudo":
            columns.append(("all predictions", _shares(predicted[:, :-1].sum(0))))
        title = _KINDS.get(kind, kind)
        columns.append((title, _shares(pixels[:, :-1].sum(0))))
        if known.any():
            right, labelled = np.diagonal(known), known[:, :-1]
            columns.append(("precision", _percent(right, labelled.sum(0))))
            columns.append(("coverage", _percent(labelled.sum(1), true)))
            columns.append(("found", _percent(right, true)))
        tables.append(
            {
                "title": title.capitalize(),
                "head": ["class", *(head for head, _ in columns)],
                "rows": list(zip(run.classes, *(values for _, values in columns), strict=True)),
            }
        )
    return tables


def _guidance(run: Run) -> dict[str, Any] | None:
    """The table of the variants of guidance: images, threshold, rows of text."""
    table = run.guidance
    if not table:
        return None
    rows = []
    for variant in table["variants"]:
        chosen = variant["chosen"] or {}
        numbers = [
            variant["labelled"],
            variant["right"],
            chosen.get("labelled"),
            chosen.get("right"),
        ]
        cells = ["–" if value is None else f"{value:.1f}" for value in numbers]
        cells.insert(2, f"{chosen['threshold']:g}" if chosen else "–")
        name = f"{variant['dense']}, {variant['scores']}" + (
            " (configured)" if variant["own"] else ""
        )
        rows.append([name, *cells])
    return {"images": table["images"], "threshold": f"{table['threshold']:g}", "rows": rows}


def _shares(pixels: Sequence[int] | np.ndarray) -> list[str]:
    array = np.asarray(pixels)
    return _percent(array, np.full_like(array, array.sum()), digits=2)


def _percent(part: np.ndarray, whole: np.ndarray, digits: int = 1) -> list[str]:
    """part / whole as text, a dash where `whole` is 0."""
    pairs = zip(part.tolist(), whole.tolist(), strict=True)
    return [f"{100 * p / w:.{digits}f}" if w else "–" for p, w in pairs]


def _samples(run: Run, *, most: int) -> list[dict[str, Any]]:
    """Validation images, lowest IoU first, with their files as data addresses."""
    entries = (run.samples or {}).get("samples", [])
    ordered = sorted(entries, key=lambda entry: np.inf if entry["iou"] is None else entry["iou"])
    shown = []
    for entry in ordered[:most]:
        pictures = []
        files = entry["files"]
        for kind in [*(kind for kind in _KINDS if kind in files), *(files.keys() - _KINDS)]:
            path, title = run.workdir / "samples" / files[kind], _KINDS.get(kind, kind)
            if path.is_file():
                pictures.append({"kind": kind, "title": title, "address": _address(path)})
        shown.append({**entry, "pictures": pictures})
    return shown


def _comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """One column per run: summary, the configuration keys in which the runs differ, IoU by class."""
    configs = [dict(_flat(run.config)) for run in runs]
    keys = sorted({key for config in configs for key in config})
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    summaries = [dict(_summary(run)) for run in runs]
    labels = dict.fromkeys(label for summary in summaries for label in summary)
    rows = [(label, [summary.get(label, "–") for summary in summaries]) for label in labels]
    rows += [(key, [str(config.get(key, "–")) for config in configs]) for key in differing]
    classes = []
    if all(run.evaluations for run in runs) and len({tuple(run.classes) for run in runs}) == 1:
        scores = [class_iou(run.evaluations[-1].scored) for run in runs]
        classes = [
            (name, [f"{score[i]:.1f}" for score in scores], int(np.argmax([s[i] for s in scores])))
            for i, name in enumerate(runs[0].classes)
        ]
    return {"names": [run.name for run in runs], "rows": rows, "classes": classes}


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in config.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value))
    return pairs


def _address(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _file(name: str) -> markupsafe.Markup:
    return markupsafe.Markup((_HERE / name).read_text(encoding="utf8"))


def _json(value: Any) -> markupsafe.Markup:
    """JSON for the inside of a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return markupsafe.Markup(text.replace("<", "\\u003c"))
