"""The report of `accelerator.py` as Markdown: a table for every kind of row."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]

_IMAGES = [("images/s", "images_per_s", 1, ".1f"), ("compiled in s", "compile_s", 1, ".0f")]
# Kind of a row → title, then heading, key, factor and format of every column.
_TABLES: dict[str, tuple[str, list[tuple[str, str, float, str]]]] = {
    "parity": (
        "Largest difference from the published implementation, relative to the largest value",
        [
            ("logits", "logits", 1, ".1e"),
            ("loss", "loss", 1, ".1e"),
            ("gradients", "gradients", 1, ".1e"),
            ("weights after a step", "weights", 1, ".1e"),
        ],
    ),
    "train": (
        "Training steps; operations include what is computed again in the backward pass",
        [
            ("ms per step", "ms_per_step", 1, ".1f"),
            ("images/s", "images_per_s", 1, ".1f"),
            ("attention", "attention", 1, ""),
            ("TFLOP", "tflop", 1, ".3g"),
            ("% of a matrix product's rate", "utilization", 100, ".1f"),
            ("that rate, TFLOP/s", "matmul_tflop_per_s", 1, ".3g"),
            ("GB accessed", "gb_accessed", 1, ".3g"),
            ("GiB of the program", "program_gib", 1, ".2f"),
            ("peak GiB so far", "peak_gib", 1, ".2f"),
            ("compiled in s", "compile_s", 1, ".0f"),
        ],
    ),
    "evaluate": ("Evaluation", _IMAGES),
    "predict": ("Prediction", _IMAGES),
    "read": (
        "Input pipeline on the host",
        [
            ("workers", "workers", 1, "d"),
            ("crops/s", "crops_per_second", 1, ".0f"),
            ("crops/s per core", "crops_per_core_second", 1, ".0f"),
            ("times what VOC's step takes", "times_of_step", 1, ".2f"),
        ],
    ),
}  # fmt: skip


def format_report(report: dict[str, Any]) -> str:
    """The whole report; rows without results have their status and the reason."""
    entries = [dict(entry) for entry in report["rows"]]
    by_name = {entry["name"]: entry for entry in entries}
    step = by_name.get("VOC", {}).get("images_per_s")
    for entry in entries:
        if step and "crops_per_second" in entry:
            entry["times_of_step"] = entry["crops_per_second"] / step
    devices = sorted({entry["device"] for entry in entries if "device" in entry})
    done = sum(entry["status"] == "measured" for entry in entries)
    lines = [
        f"# {', '.join(devices) or 'no device yet'}, jax {report['jax']}",
        "",
        f"{done} of {len(entries)} rows are measured"
        + (", with tiny models." if report["tiny"] else "."),
    ]
    for kind, (title, columns) in _TABLES.items():
        own = [entry for entry in entries if entry["kind"] == kind]
        if own:
            heads = ["row", *(head for head, *_ in columns)]
            lines += ["", f"## {title}", "", _line(heads), _line(["---"] * len(heads))]
            lines += [_line(_cells(entry, columns)) for entry in own]
    for entry in entries:
        if entry["kind"] not in _TABLES:
            lines += ["", f"## {entry['name']}", ""]
            parts = _parts(entry, by_name.get("VOC", {}).get("ms_per_step"))
            lines += [_line(row) for row in parts] or [sentence(entry)]
    return "\n".join(lines) + "\n"


def sentence(entry: Entry) -> str:
    """Status of a row, and its reason or its time."""
    if "error" in entry:
        return f"{entry['status']}: {entry['error']}".replace("|", "/")
    return entry["status"] + (f" in {entry['seconds']:.0f} s" if "seconds" in entry else "")


def _cells(entry: Entry, columns: list[tuple[str, str, float, str]]) -> list[str]:
    if entry["status"] != "measured":
        return [entry["name"], sentence(entry), *[""] * (len(columns) - 1)]
    cells = [entry["name"]]
    for _, key, factor, form in columns:
        value = entry.get(key)
        cells.append(
            "" if value is None else format(value if factor == 1 else factor * value, form)
        )
    return cells


def _parts(entry: Entry, step: float | None) -> list[list[str]]:
    """Milliseconds of the parts of a step, and the differences that name what no program does alone."""
    parts = dict(entry.get("breakdown_ms", {}))
    if not parts:
        return []
    forward = parts["labels, forward, losses"]
    known = parts["labels of teachers"] + parts["forward of labelled"]
    parts["forward of unlabelled, losses (difference)"] = forward - known
    if step:
        parts["backward, update (difference)"] = step - forward - parts["views"]
    rows = [[name, f"{value:.1f}"] for name, value in parts.items()]
    return [["part", "ms"], ["---", "---"], *rows]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
