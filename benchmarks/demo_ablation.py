"""What each part of SemiVL adds, on the drawn pictures of `shapes`.

    python -m benchmarks.demo_ablation --out=runs/ablation [--seeds=0,1,2 --steps=400 --jobs=2]

Every row is the demo configuration with the same labelled pictures and the same number of steps; a row
adds one part to the row before. The score is the validation mIoU (%) of the weights at the end of
training (of the average where the row keeps one), not the best on the way. Rows that are there already
are not run again. Prints a Markdown table and writes `<out>/ablation.json`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from absl import app, flags

_OUT = flags.DEFINE_string("out", "runs/ablation", "Folder of the runs and of ablation.json.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of initialisation, order and views.")
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of every run; 0: as many as the demo.")
_JOBS = flags.DEFINE_integer("jobs", 2, "Runs at a time, each on its own share of the cores.")

_FROM_SCRATCH = {
    "method.semi_supervised": False,
    "model.init": "random",
    "model.finetune": "all",
    "model.decoder": "deeplab",
    "model.taps": "(2,4)",
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
    ("+ language-guided decoder", {"model.decoder": None, "model.taps": None}),
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


def command(fields: dict[str, object], seed: str, workdir: Path) -> list[str]:
    """The command line of one run."""
    steps = {"steps": _STEPS.value} if _STEPS.value else {}
    options = {**fields, "seed": seed, **steps, **_QUIET}
    return [
        sys.executable,
        "-m",
        "semivl_jax.main",
        "--config=configs/demo.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]


def final_score(workdir: Path) -> float | None:
    """mIoU at the end of the run, None if it is not there yet."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return None
    scores = [
        line.get("eval/miou_ema", line["eval/miou"])
        for line in map(json.loads, path.read_text(encoding="utf8").splitlines())
        if "eval/miou" in line
    ]
    return scores[-1] if scores else None


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    del argv
    out, rows = Path(_OUT.value), row_options()
    places = {
        (name, seed): out / f"{number}-seed{seed}"
        for number, name in enumerate(rows)
        for seed in _SEEDS.value
    }
    cores = sorted(os.sched_getaffinity(0))
    shares: Queue[set[int]] = Queue()
    for job in range(_JOBS.value):
        shares.put(set(cores[job :: _JOBS.value]) or set(cores))

    def run(key: tuple[str, str]) -> None:
        workdir = places[key]
        if final_score(workdir) is not None:
            return
        share = shares.get()
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "log.txt").open("w") as log:
            subprocess.run(
                command(rows[key[0]], key[1], workdir),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, share),
            )
        shares.put(share)
        print(f"{key[0]}, seed {key[1]}: {final_score(workdir)}", flush=True)

    with ThreadPoolExecutor(_JOBS.value) as pool:
        list(pool.map(run, sorted(places, key=lambda key: key[1])))
    report(out, {key: final_score(workdir) for key, workdir in places.items()})


def report(out: Path, scores: dict[tuple[str, str], float | None]) -> None:
    """Prints the table and writes it as JSON."""
    table = []
    for name in row_options():
        values = [score for (row, _), score in scores.items() if row == name and score is not None]
        if not values:
            raise ValueError(f"row {name!r} has no result; see the log.txt files in {out}")
        mean = statistics.mean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        table.append({"row": name, "mean": mean, "deviation": deviation, "values": values})
    print(f"\n| shapes, {len(_SEEDS.value)} seeds | mIoU (%) |\n| --- | --- |")
    for line in table:
        print(f"| {line['row']} | {line['mean']:.1f} ± {line['deviation']:.1f} |")
    (out / "ablation.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    app.run(main)
