"""What each part of SemiVL adds, on the generated images of `shapes`.

    python -m benchmarks.demo_ablation --out=runs/ablation [--seeds=0,1,2 --steps=400 --jobs=2]

Every row is the demo configuration with the same labelled images and the same number of steps; a row adds
one part to the row before. The score is the validation mIoU (%) of the weights at the end of training (of the
EMA where there is one). Finished runs are not repeated. Prints a Markdown table and writes
`OUT/ablation.json`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from benchmarks import runs
from semivl_jax import sweep, utils

_FROM_SCRATCH = {
    "method.name": "supervised",
    "model.init": "random",
    "model.finetune": "all",
    "model.decoder": "deeplab",
    "model.out_indices": "(2,4)",
}

# Name of a row, and what it changes in the row before (None: the value of the demo).
STEPS: tuple[tuple[str, dict[str, object]], ...] = (
    ("labelled images only", _FROM_SCRATCH),
    ("+ consistency", {"method.name": "unimatch"}),
    ("+ CLIP initialisation, spatial fine-tuning", {"model.init": None, "model.finetune": None}),
    ("+ language-guided decoder", {"model.decoder": None, "model.out_indices": None}),
    ("+ CLIP guidance (class names)", {"method.name": None, "text.guidance": "name"}),
    ("+ class definitions", {"text.guidance": None}),
)

# Beside these steps: the third row without consistency.
_EXTRA = "(CLIP initialisation, labelled images only)"
_EXTRA_OF = "+ CLIP initialisation, spatial fine-tuning"


def rows() -> dict[str, dict[str, object]]:
    """Name of a row → all fields that differ from the demo configuration."""
    fields: dict[str, object] = {}
    table = {}
    for name, change in STEPS:
        fields = {k: v for k, v in {**fields, **change}.items() if v is not None}
        table[name] = fields
    table[_EXTRA] = {**table[_EXTRA_OF], "method.name": "supervised"}
    return table


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.demo_ablation", __doc__)
    return runs.add_options(command, out="runs/ablation")


def main() -> None:
    """Trains, prints and writes the table."""
    options = parser().parse_args()
    table = []
    print(f"\n| {options.config}, seeds {options.seeds} | mIoU (%) |\n| --- | --- |")
    for name, values in runs.train(rows(), options).items():
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.mean(values)
        table.append({"row": name, "mean": mean, "deviation": deviation, "values": values})
        print(f"| {name} | {sweep.mean_and_deviation(values)} |")
    utils.write_text(Path(options.out) / "ablation.json", json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
