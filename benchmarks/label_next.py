"""Are images that `select` chooses worth more than random ones? On the generated images of `shapes`.

    python -m benchmarks.label_next --out=runs/label_next [--seeds=0,1,2 --method=supervised --jobs=2]

For every seed: train with --labelled random images, let `semivl_jax.select` choose --budget more with that
model, and train again with those, and with as many random ones. A seed changes the random images,
initialisation and order. The score is the best validation mIoU (%) along the run. Finished runs are not
repeated. Prints a Markdown table and writes `OUT/label_next.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks import runs
from semivl_jax import select, sweep, utils


def train(
    rows: dict[str, dict[int, object]], options: argparse.Namespace
) -> dict[str, dict[int, sweep.Run]]:
    """The finished runs of every row by seed; a row gives `data.split` per seed."""
    steps = {"steps": options.steps} if options.steps else {}
    made = {
        name: {
            seed: sweep.Run(
                name=f"{name}, seed {seed}",
                config=options.config,
                workdir=Path(options.out) / f"{name}-seed{seed}",
                fields={
                    "method.name": options.method,
                    "data.split": split,
                    "data.split_seed": seed,
                    "seed": seed,
                    "evaluation.pictures": 0,
                    **steps,
                },
            )
            for seed, split in of_row.items()
        }
        for name, of_row in rows.items()
    }
    failed = sweep.run_all(
        [one for of_row in made.values() for one in of_row.values()], jobs=options.jobs
    )
    if failed:
        raise SystemExit(f"error: {len(failed)} runs failed; see log.txt in their workdirs")
    return made


def choose(run: Path, budget: int) -> str:
    """The list that `select` writes for a run."""
    out = run / "select"
    if not (out / "split.txt").exists():
        code = select.main([str(run), f"--budget={budget}", f"--out={out}"])
        if code:
            raise SystemExit(code)
    return str(out / "split.txt")


def draw(run: Path, budget: int, seed: int) -> str:
    """A list of the run's labelled images and as many random ones as `select` chooses."""
    labelled, pool = (
        (run / f"{name}.txt").read_text(encoding="utf8").split("\n")[:-1]
        for name in ("labelled", "unlabelled")
    )
    drawn = np.random.default_rng(seed).choice(sorted(pool), budget, replace=False)
    path = run / "random.txt"
    utils.write_text(path, "".join(f"{name}\n" for name in (*labelled, *drawn)))
    return str(path)


def format_table(scores: dict[str, dict[int, float]], seeds: tuple[int, ...]) -> str:
    """Markdown: a column per seed."""
    lines = [
        f"| labelled images | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        "| --- " * (1 + len(seeds)) + "|",
    ]
    for name, of_row in scores.items():
        lines.append(f"| {name} | {' | '.join(f'{of_row[seed]:.1f}' for seed in seeds)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.label_next", __doc__)
    runs.add_options(command, out="runs/label_next")
    add = command.add_argument
    add("--method", default="supervised", help="method.name of all runs; default: %(default)s")
    add("--labelled", type=utils.positive, default=10,
        help="labelled images of the first runs; default: %(default)s")  # fmt: skip
    add("--budget", type=utils.positive, default=10,
        help="images that are labelled next; default: %(default)s")  # fmt: skip
    return command


def main() -> None:
    """Trains, chooses, trains again, prints and writes the table."""
    options = parser().parse_args()
    seeds = runs.numbers(options.seeds, int, key="--seeds")
    first = train({"first": dict.fromkeys(seeds, options.labelled)}, options)["first"]
    lists = {
        "select": {s: choose(first[s].workdir, options.budget) for s in seeds},
        "random": {s: draw(first[s].workdir, options.budget, s) for s in seeds},
    }
    made = {"first": first, **train(lists, options)}
    scores = {
        name: {s: one.result().best for s, one in of_row.items()} for name, of_row in made.items()
    }
    print("\n" + format_table(scores, seeds))
    utils.write_text(Path(options.out) / "label_next.json", json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
