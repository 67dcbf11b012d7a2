"""What each part of SemiVL adds, on the drawn pictures of `shapes`.

    python -m benchmarks.demo_ablation --out=runs/ablation [--seeds=0,1,2 --steps=400 --jobs=2]

Every row is the demo configuration with the same labelled pictures and the same number of steps; a row
adds one part to the row before. The score is the validation mIoU (%) of the weights at the end of
training (of the average where the row keeps one), not the best on the way. Rows that are there already
are not run again. Prints a Markdown table and writes `<out>/ablation.json`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from absl import app, flags

from semivl_jax import sweep

_OUT = flags.DEFINE_string("out", "runs/ablation", "Folder of the runs and of ablation.json.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of initialisation, order and views.")
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of every run; 0: as many as the demo.")
_JOBS = flags.DEFINE_integer("jobs", 2, "Runs at a time, each on its own share of the cores.")

_FROM_SCRATCH = {
    "method.semi_supervised": False,
    "model.init": "random",
    "model.finetune": "all",
    "model.decoder": "deeplab",
    "model.out_indices": "(2,4)",
    "method.guidance": False,
}

# Evaluated at the end only, without pictures.
_QUIET = {"evaluation.every_steps": 1_000_000, "evaluation.pictures": 0}

# Each row: its name and what it changes of the row before (None: back to the demo's own value).
ROWS: tuple[tuple[str, dict[str, object]], ...] = (
    ("labelled pictures only", _FROM_SCRATCH),
    ("+ consistency", {"method.semi_supervised": None}),
    (
        "+ CLIP initialisation, spatial fine-tuning",
        {"model.init": None, "model.finetune": None},
    ),
    ("+ language-guided decoder", {"model.decoder": None, "model.out_indices": None}),
    ("+ CLIP guidance (class names)", {"method.guidance": None, "text.guidance": "name"}),
    ("+ class definitions", {"text.guidance": None}),
)


# Beside the ladder: what the third row is without consistency.
_BESIDE = "(CLIP initialisation, labelled pictures only)"
_BESIDE_OF = "+ CLIP initialisation, spatial fine-tuning"


def row_options() -> dict[str, dict[str, object]]:
    """Row name → all fields that differ from the demo configuration."""
    fields: dict[str, object] = {}
    rows = {}
    for name, change in ROWS:
        fields = {k: v for k, v in {**fields, **change}.items() if v is not None}
        rows[name] = fields
    rows[_BESIDE] = {**rows[_BESIDE_OF], "method.semi_supervised": False}
    return rows


def planned() -> dict[str, list[sweep.Run]]:
    """The runs of every row, one per seed."""
    steps = {"steps": _STEPS.value} if _STEPS.value else {}
    return {
        name: [
            sweep.Run(
                name=f"{name}, seed {seed}",
                config="configs/demo.py",
                workdir=Path(_OUT.value) / f"{number}-seed{seed}",
                fields={**fields, "seed": seed, **steps, **_QUIET},
            )
            for seed in _SEEDS.value
        ]
        for number, (name, fields) in enumerate(row_options().items())
    }


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    del argv
    runs = planned()
    every = [one for of_row in runs.values() for one in of_row]
    sweep.run_all(sorted(every, key=lambda one: one.fields["seed"]), jobs=_JOBS.value)
    report(runs)


def report(runs: dict[str, list[sweep.Run]]) -> None:
    """Prints the table and writes it as JSON."""
    table = []
    print(f"\n| shapes, {len(_SEEDS.value)} seeds | mIoU (%) |\n| --- | --- |")
    for name, of_row in runs.items():
        values = [result.last for one in of_row if (result := one.result()) is not None]
        if not values:
            raise ValueError(f"row {name!r} has no result; see the log.txt files in {_OUT.value}")
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.mean(values)
        table.append({"row": name, "mean": mean, "deviation": deviation, "values": values})
        print(f"| {name} | {sweep.mean_and_deviation(values)} |")
    text = json.dumps(table, indent=1) + "\n"
    (Path(_OUT.value) / "ablation.json").write_text(text, encoding="utf8")


if __name__ == "__main__":
    app.run(main)
