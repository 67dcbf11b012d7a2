"""Does half precision cost accuracy? The same training in float32 and in bfloat16, on `shapes`.

    python -m benchmarks.precision --out=runs/precision [--seeds=0,1,2] [--jobs=2]
    python -m benchmarks.precision --out=/tmp/precision --steps=5 --seeds=0,1

Rows: everything in float32; arithmetic in bfloat16 (parameters, optimiser and statistics stay float32); and
with the average and the frozen tower's weights stored in bfloat16 too. Every row is the demo configuration;
the score is the validation mIoU (%) at the end of training. Rows that are there already are not run again.
Prints a Markdown table and, for every row but the first, whether its mean differs from float32's by less
than the seeds of a row do (pooled standard deviation), and writes `<out>/precision.json`.

The second command only shows that everything works: 5 steps teach nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import sweep, utils

# Evaluated at the end only, without pictures.
_QUIET = {
    "evaluation.every_steps": 1_000_000,
    "evaluation.pictures": 0,
    "evaluation.held_back": 0,
}

_HALF = {"dtype": "bfloat16"}
ROWS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": _HALF,
    "bfloat16, average and frozen weights too": _HALF
    | {"method.ema_dtype": "bfloat16", "model.guidance_dtype": "bfloat16"},
}
"""Name of a row → fields that differ from the demo configuration."""


@dataclasses.dataclass(frozen=True)
class Row:
    """mIoU in percent per seed of one precision."""

    name: str
    values: list[float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = utils.Parser("benchmarks.precision", __doc__)
    option = made.add_argument
    option("--config", default="configs/demo.py", help="configuration of every run")
    option("--out", default="runs/precision", help="folder of the runs and of precision.json")
    option("--seeds", default="0,1,2", help="seeds of initialisation, order and views")
    option("--steps", type=int, default=0, help="steps of every run; 0: as the configuration says")
    option("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    return made


def main() -> None:
    """Runs what is missing, prints and writes."""
    options = parser().parse_args()
    out = Path(options.out)
    fields = dict(_QUIET) | ({"steps": options.steps} if options.steps else {})
    runs = planned(out, options.config, [int(seed) for seed in options.seeds.split(",")], fields)
    failed = sweep.run_all([one for of_row in runs.values() for one in of_row], jobs=options.jobs)
    if failed:
        raise SystemExit(f"error: {len(failed)} runs failed; see the log.txt files in {out}")
    rows = [Row(name, [one.result().last for one in of_row]) for name, of_row in runs.items()]
    result = summary(rows)
    print(format_table(rows, result))
    (out / "precision.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def planned(
    out: Path, config: str, seeds: Sequence[int], fields: dict[str, object]
) -> dict[str, list[sweep.Run]]:
    """The runs of every row, one per seed."""
    return {
        name: [
            sweep.Run(
                name=f"{name}, seed {seed}",
                config=config,
                workdir=out / f"{number}-seed{seed}",
                fields=fields | changes | {"seed": seed},
            )
            for seed in seeds
        ]
        for number, (name, changes) in enumerate(ROWS.items())
    }


def summary(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One entry per row; `within_noise` compares its mean with the first row's, None without noise."""
    first, entries = rows[0], []
    for row in rows:
        noise = ((first.deviation**2 + row.deviation**2) / 2) ** 0.5
        difference = row.mean - first.mean
        entries.append(
            {
                "row": row.name,
                "mean": row.mean,
                "deviation": row.deviation,
                "values": row.values,
                "difference": difference,
                "noise": noise,
                "within_noise": abs(difference) < noise if noise and row is not first else None,
            }
        )
    return entries


def format_table(rows: Sequence[Row], entries: Sequence[dict[str, object]]) -> str:
    """The table in Markdown."""
    lines = [
        f"| shapes, {len(rows[0].values)} seeds | mIoU (%) | difference | noise of the seeds | |",
        "| --- | --- | --- | --- | --- |",
    ]
    verdicts = {True: "within the noise", False: "**beyond the noise**", None: ""}
    for row, entry in zip(rows, entries, strict=True):
        score = sweep.mean_and_deviation(row.values)
        lines.append(
            f"| {row.name} | {score} | {entry['difference']:+.1f} | {entry['noise']:.1f} | "
            f"{verdicts[entry['within_noise']]} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
