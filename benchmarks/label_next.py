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
from semivl_jax import select, utils


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


def format_table(scores: dict[str, list[float]], seeds: list[str]) -> str:
    """Markdown: a column per seed."""
    lines = [
        f"| labelled images | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        "| --- " * (1 + len(seeds)) + "|",
    ]
    for name, of_row in scores.items():
        lines.append(f"| {name} | {' | '.join(f'{score:.1f}' for score in of_row)} |")
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
    seeds, method = options.seeds.split(","), {"method.name": options.method}
    rows = {"first": lambda seed: _labels(options.labelled, seed)}
    first = dict(zip(seeds, runs.train(rows, options, **method)["first"], strict=True))
    rows |= {
        "select": lambda seed: _labels(choose(first[seed].workdir, options.budget), seed),
        "random": lambda seed: _labels(draw(first[seed].workdir, options.budget, int(seed)), seed),
    }
    trained = runs.train(rows, options, **method)
    scores = {name: [run.result().best for run in of_row] for name, of_row in trained.items()}
    print("\n" + format_table(scores, seeds))
    utils.write_text(Path(options.out) / "label_next.json", json.dumps(scores, indent=1) + "\n")


def _labels(split: int | str, seed: str) -> runs.Fields:
    return {"data.split": split, "data.split_seed": seed}


if __name__ == "__main__":
    main()
