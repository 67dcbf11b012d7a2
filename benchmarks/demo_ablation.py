"""What each part of SemiVL adds, on the generated images of `shapes`.

    python -m benchmarks.demo_ablation --out=runs/ablation [--seeds=0,1,2 --steps=800 --jobs=2]

Every row is the demo configuration with the same labelled images and the same number of steps; a row adds one
part to the row before. The last rows are the demo's model trained on the labelled images only, with several
learning rates. The score is the best validation mIoU (%) of the evaluations along the run (of the EMA where
there is one); beside it, at that evaluation, the mean IoU of two classes that look alike and of the classes
that have several concepts. Finished runs are not repeated. Prints a Markdown table and writes
`OUT/ablation.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import runs
from semivl_jax import sweep, utils
from semivl_jax.reporting import read
from tfds_builders.shapes import words

_FROM_SCRATCH = {
    "method.name": "supervised",
    "model.init": "random",
    "model.finetune": "all",
    "model.decoder": "deeplab",
}

# Name of a row, and what it changes in the row before (None: the value of the demo).
STEPS: tuple[tuple[str, dict[str, object]], ...] = (
    ("labelled images only, from scratch", _FROM_SCRATCH),
    ("+ consistency", {"method.name": "unimatch"}),
    ("+ CLIP initialisation, spatial fine-tuning", {"model.init": None, "model.finetune": None}),
    ("+ language-guided decoder", {"model.decoder": None}),
    ("+ CLIP guidance (class names)", {"method.name": None, "text.guidance": "name"}),
    ("+ class definitions", {"text.guidance": None}),
)
WHOLE_MODEL = "the whole model, labelled images only"
"""Beside these steps, with each of `RATES`."""
RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates of `WHOLE_MODEL`; the demo has the second one."""

GROUPS: dict[str, tuple[str, ...]] = {
    "tiger, leopard": ("tiger", "leopard"),
    "several concepts": tuple(n for n, concepts in words.DEFINITIONS.items() if len(concepts) > 1),
}
"""Classes whose mean IoU the table has beside the mIoU."""


def rows() -> dict[str, dict[str, object]]:
    """Name of a row → all fields that differ from the demo configuration."""
    fields: dict[str, object] = {}
    table = {}
    for name, change in STEPS:
        fields = {k: v for k, v in {**fields, **change}.items() if v is not None}
        table[name] = fields
    for rate in RATES:
        name = f"({WHOLE_MODEL}, learning rate {rate:g})"
        table[name] = {"method.name": "supervised", "optim.lr": rate}
    return table


def scores(workdir: Path) -> dict[str, float]:
    """Best mIoU of a run in percent, and the mean IoU of each of GROUPS at the same evaluation."""
    run = read.load(workdir)
    steps, values = run.curves[run.score]
    best = int(np.nanargmax(values))
    found = {"mIoU": float(values[best])}
    for group, classes in GROUPS.items():
        of_classes = [run.curves[f"eval/iou/{name}"] for name in classes]
        found[group] = statistics.mean(
            float(iou[np.searchsorted(at, steps[best])]) for at, iou in of_classes
        )
    return found


def format_table(table: dict[str, Sequence[dict[str, float]]], *, title: str) -> str:
    """Markdown: mean and deviation over the seeds."""
    columns = ["mIoU", *GROUPS]
    lines = [f"| {title} | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for name, of_seeds in table.items():
        cells = [sweep.mean_and_deviation([one[column] for one in of_seeds]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.demo_ablation", __doc__)
    return runs.add_options(command, out="runs/ablation")


def main() -> None:
    """Trains, prints and writes the table."""
    options = parser().parse_args()
    trained = runs.train(rows(), options)
    table = {name: [scores(one.workdir) for one in of_row] for name, of_row in trained.items()}
    print("\n" + format_table(table, title=f"{options.config}, seeds {options.seeds}"))
    utils.write_text(Path(options.out) / "ablation.json", json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
