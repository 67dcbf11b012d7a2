"""Tables of the gain over labelled-only training.

In: one entry per row, as `real_photos.json` holds them: `data`, `split`, `labelled`, `method`,
`learning_rate`, `seeds`, and per seed the scores (mIoU, %) `best`, `last` and `test` (None: not measured).
Out: Markdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from semivl_jax import sweep

LABELLED_ONLY = "supervised"
"""Name of the method that reads no unlabelled photo."""


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: scores of every row, and the gain over labelled only with the same labels and seeds."""
    lines = [
        "| photos | labelled | method | seeds | best val mIoU | last | gain | test mIoU | gain |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in found:
        rate = entry["learning_rate"]
        cells = (
            entry["data"],
            entry["labelled"],
            "labelled only" + f", lr {rate:g}" * (rate is not None)
            if entry["method"] == LABELLED_ONLY
            else entry["method"],
            len(entry["seeds"]),
            sweep.mean_and_deviation(entry["best"]),
            sweep.mean_and_deviation(entry["last"]),
            _signed(gain(found, entry, "best")),
            sweep.mean_and_deviation([score for score in entry["test"] if score is not None]),
            _signed(gain(found, entry, "test")),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean and smallest gain of every method over the settings."""
    lines = [
        "| method | settings | mean gain | smallest | mean gain on test photos | smallest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in dict.fromkeys(e["method"] for e in found if e["method"] != LABELLED_ONLY):
        own = [entry for entry in found if entry["method"] == method]
        best, test = (
            [value for entry in own if (value := gain(found, entry, score)) is not None]
            for score in ("best", "test")
        )
        cells = [method, str(len(best))]
        for gains in (best, test):
            cells += [_signed(statistics.mean(gains) if gains else None)]
            cells += [_signed(min(gains, default=None))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gain(found: Sequence[Mapping[str, Any]], entry: Mapping[str, Any], score: str) -> float | None:
    """Mean difference to labelled only over the seeds that both have; None without any, and for itself."""
    if entry["method"] == LABELLED_ONLY:
        return None
    for other in found:
        same = all(other[key] == entry[key] for key in ("data", "split"))
        if same and other["method"] == LABELLED_ONLY:
            before = dict(zip(other["seeds"], other[score], strict=True))
            pairs = zip(entry["seeds"], entry[score], strict=True)
            differences = [
                value - before[seed]
                for seed, value in pairs
                if value is not None and before.get(seed) is not None
            ]
            return statistics.mean(differences) if differences else None
    return None


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"
