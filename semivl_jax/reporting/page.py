"""Runs to one HTML page: text, tables and pictures as static HTML, charts drawn when it opens.

Everything is inside the page: styles, scripts, pictures as data addresses, and the charts' library, so the
page makes no request at all. The library is uPlot 1.6.32 (https://github.com/leeoniya/uPlot, MIT, in the
folder `uplot` as its npm package `uplot` has it): 51 kB that a browser reads in some milliseconds, where
libraries of several megabytes take a second.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from semivl_jax.evaluation import confusion as counting
from semivl_jax.reporting import charts
from semivl_jax.reporting.read import EvaluationRecord, Run

SAMPLES = 16
"""Most validation images on a page, over all runs."""
_KINDS = {
    "image": "image", "truth": "ground truth", "prediction": "prediction", "error": "errors",
    "pseudo": "pseudo-label", "confidence": "confidence", "guidance": "guidance",
}  # fmt: skip
_HERE = Path(__file__).parent


def render(runs: Sequence[Run]) -> str:
    """The whole page as text."""
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
        kinds=_KINDS,
        style=_file("page.css"),
        script=_file("page.js"),
        figures=_json(figures),
        legends=_json({str(s["number"]): s["legend"] for s in sections}),
        charts=_file("charts.js"),
        library=_file("uplot/uPlot.iife.min.js"),
        library_style=_file("uplot/uPlot.min.css"),
    )


def _section(run: Run, number: int, runs: Sequence[Run]) -> dict[str, Any]:
    made = [chart for chart in (charts.confusion(run), charts.balance(run)) if chart is not None]
    palette = (run.samples or run.facts).get("palette", [])
    legend = [
        {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in zip(run.classes, palette, strict=False)
    ]
    return {
        "number": number,
        "name": run.name,
        "card": _card(run),
        "sessions": [_session(session) for session in run.sessions],
        "config": json.dumps(run.config, indent=1, ensure_ascii=False),
        "charts": made,
        "classes": _classes(run, legend),
        "evaluations": [record.step for record in run.evaluations],
        "samples": _samples(run, most=max(2, SAMPLES // len(runs))),
        "samples_step": (run.samples or {}).get("step"),
        "legend": legend,
    }


def _card(run: Run) -> list[tuple[str, str]]:
    """The run in short: label and value."""
    facts, best, last = run.facts, run.best(), (run.sessions or [{}])[-1]
    rows = []
    if best is not None:
        rows.append(("best mIoU", f"{best[1]:.2f} % at step {best[0]:,}"))
    total = facts.get("total_steps")
    rows.append(("steps", f"{run.steps:,}" + (f" of {total:,}" if total else "")))
    images = facts.get("images")
    rows.append(("data", f"{facts.get('dataset', run.config.get('data', {}).get('dataset', '?'))}"))
    if images:
        rows.append(("images", f"{images['labelled']:,} labelled, {images['unlabelled']:,} unlabelled, "
                               f"{images['validation']:,} validation"))  # fmt: skip
    seconds = sum(session.get("seconds", 0) for session in run.sessions)
    if seconds:
        rows.append(("duration", _duration(seconds)))
    if "train/images_per_s" in run.curves:
        # The first value has the compilation in it.
        rate = np.nanmedian(run.curves["train/images_per_s"][1][1:] if run.steps > 1 else [np.nan])
        if np.isfinite(rate):
            rows.append(("speed", f"{rate:.1f} images/s (median)"))
    devices = last.get("devices")
    if devices:
        cores = f"{devices['cpu_cores']} CPU cores"
        kind = f"{devices['count']} × {devices['kind']}, {cores}"
        rows.append(("devices", cores if devices["platform"] == "cpu" else kind))
    versions = last.get("versions", {})
    if versions:
        named = [name for name in ("semivl_jax", "jax", "python") if name in versions]
        rows.append(("versions", ", ".join(f"{name} {versions[name]}" for name in named)))
    source = last.get("source")
    if source:
        changed = ", with changes" if source["changed"] else ""
        rows.append(("source", source["commit"][:10] + changed))
    if last:
        rows.append(("state", _STATES.get(last["outcome"], last["outcome"])))
    return rows


_STATES = {
    "running": "running, or killed without a word",
    "stopped": "stopped by a signal, saved",
    "killed": "killed",
    "failed": "ended with an error",
    "finished": "finished",
}


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


def _classes(run: Run, legend: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Rows of the class table: percentages, None where there is nothing to say."""
    if not run.evaluations:
        return []
    newest = run.evaluations[-1]
    iou = counting.iou(newest.deciding)
    before = counting.iou(run.evaluations[0].deciding) if len(run.evaluations) > 1 else None
    labelled = newest.deciding.sum(1)
    accuracy = np.diagonal(newest.deciding) / np.maximum(labelled, 1)
    pseudo = _label_quality(newest)
    images = run.facts.get("balance", {}).get("labelled", {}).get("images")
    return [
        {
            "name": name,
            "colour": legend[i]["colour"] if i < len(legend) else "#888888",
            "iou": float(iou[i]) if labelled[i] or newest.deciding[:, i].any() else None,
            "delta": float(iou[i] - before[i]) if before is not None else None,
            "accuracy": 100 * float(accuracy[i]) if labelled[i] else None,
            "share": 100 * float(labelled[i] / max(1, labelled.sum())),
            "images": images[i] if images else None,
            "confident": pseudo[0][i] if pseudo else None,
            "right": pseudo[1][i] if pseudo else None,
        }
        for i, name in enumerate(run.classes)
    ]


def _label_quality(
    record: EvaluationRecord,
) -> tuple[list[float | None], list[float | None]] | None:
    """Percent of each true class's held-back pixels with a pseudo-label, and of these right."""
    if record.pseudo is None:
        return None
    pixels, sure = record.pseudo.sum(1), record.pseudo[:, :-1].sum(1)
    right = np.diagonal(record.pseudo)
    share = [100 * float(s / p) if p else None for s, p in zip(sure, pixels, strict=True)]
    return share, [100 * float(r / s) if s else None for r, s in zip(right, sure, strict=True)]


def _samples(run: Run, *, most: int) -> list[dict[str, Any]]:
    """Validation images, worst first, with their files as data addresses."""
    entries = (run.samples or {}).get("samples", [])
    ordered = sorted(entries, key=lambda entry: np.inf if entry["iou"] is None else entry["iou"])
    shown = []
    for entry in ordered[:most]:
        pictures = []
        for kind in _KINDS:
            path = run.workdir / "samples" / entry["files"].get(kind, "-")
            if path.is_file():
                pictures.append({"kind": kind, "title": _KINDS[kind], "address": _address(path)})
        shown.append({**entry, "pictures": pictures})
    return shown


def _comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """One column per run: scores, length, and the configuration keys in which they differ."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = sorted({key for config in flat for key in config})
    differing = [key for key in keys if len({repr(config.get(key)) for config in flat}) > 1]
    cards = [dict(_card(run)) for run in runs]
    labels = [label for label in cards[0] if any(label in card for card in cards)]
    rows = [(label, [card.get(label, "–") for card in cards]) for label in labels]
    rows += [(key, [str(config.get(key, "–")) for config in flat]) for key in differing]
    names = [run.name for run in runs]
    classes = []
    if all(run.evaluations for run in runs) and len({tuple(run.classes) for run in runs}) == 1:
        scores = [counting.iou(run.evaluations[-1].deciding) for run in runs]
        classes = [
            (name, [f"{score[i]:.1f}" for score in scores], int(np.argmax([s[i] for s in scores])))
            for i, name in enumerate(runs[0].classes)
        ]
    return {"names": names, "rows": rows, "classes": classes}


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
    """JSON that may stand inside a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return markupsafe.Markup(text.replace("<", "\\u003c"))
