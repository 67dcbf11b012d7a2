"""Does bfloat16 cost accuracy? The same training in float32 and in bfloat16, on `shapes`.

    python -m benchmarks.precision --out=runs/precision [--seeds=0,1,2 --steps=200 --jobs=2]

Rows: everything in float32; arithmetic in bfloat16 (parameters, optimiser and statistics stay float32); and
the frozen CLIP's weights stored in bfloat16 too. Every row is the demo configuration; the score is the
validation mIoU (%) at the end of training. Finished runs are not repeated. Prints a Markdown table with the
differences from float32 beside the pooled standard deviation of the seeds, and writes `OUT/precision.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import runs
from semivl_jax import sweep, utils

ROWS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, frozen weights too": {"dtype": "bfloat16", "model.guidance_dtype": "bfloat16"},
}
"""Name of a row → fields that differ from the configuration."""


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.precision", __doc__)
    return runs.add_options(command, out="runs/precision")


def main() -> None:
    """Trains, prints and writes the table."""
    options = parser().parse_args()
    trained = runs.train(ROWS, options, **{"evaluation.every_steps": 1_000_000})  # at the end only
    result = summary({name: [one.result().last for one in own] for name, own in trained.items()})
    print(format_table(result))
    utils.write_text(Path(options.out) / "precision.json", json.dumps(result, indent=1) + "\n")


def summary(rows: Mapping[str, Sequence[float]]) -> list[dict[str, object]]:
    """One entry per row: values, difference from the first row's mean, pooled deviation of the seeds."""
    first, entries = next(iter(rows.values())), []
    for name, values in rows.items():
        difference = statistics.mean(values) - statistics.mean(first)
        pooled = None
        if len(values) > 1 and values is not first:
            pooled = ((statistics.variance(first) + statistics.variance(values)) / 2) ** 0.5
        entries.append(
            {"row": name, "values": values, "difference": difference, "deviation": pooled}
        )
    return entries


def format_table(entries: Sequence[Mapping[str, object]]) -> str:
    """The table in Markdown."""
    lines = [
        "| shapes | mIoU (%) | difference | deviation of the seeds |",
        "| --- | --- | --- | --- |",
    ]
    for entry in entries:
        score = sweep.mean_and_deviation(entry["values"])
        pooled = "–" if entry["deviation"] is None else f"{entry['deviation']:.1f}"
        lines.append(f"| {entry['row']} | {score} | {entry['difference']:+.1f} | {pooled} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
