"""What benchmarks that train share: options, and rows with several seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from semivl_jax import sweep

Fields = Mapping[str, object]
"""Configuration keys → values."""

_QUIET = {
    "evaluation.pictures": 0,
    "evaluation.pseudo_label_eval_images": 0,
}


def add_options(
    command: argparse.ArgumentParser, *, out: str, config: str = "configs/demo.py"
) -> argparse.ArgumentParser:
    """Options of benchmarks that train rows with several seeds."""
    option = command.add_argument
    option("--config", default=config, help="configuration of every run; default: %(default)s")
    option("--out", default=out, help="folder of the runs and of the table; default: %(default)s")
    option("--seeds", default="0,1,2", help="seeds of every row; default: %(default)s")
    option("--steps", type=int, default=0, help="steps of every run; 0: as the configuration says")
    option("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    return command


def pairs(parts: Iterable[str], *, key: str) -> dict[str, str]:
    """{NAME: VALUE} of NAME=VALUE; ValueError for anything else."""
    found = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{key} has {part!r}; write NAME=VALUE")
        found[name] = value
    return found


def numbers(text: str, kind: type, *, key: str) -> tuple[Any, ...]:
    """Numbers between commas; ValueError for anything else."""
    try:
        return tuple(map(kind, text.split(",")))
    except ValueError:
        raise ValueError(f"{key} {text!r} is not numbers between commas, such as 0,1,2") from None


def train(
    rows: Mapping[str, Fields | Callable[[str], Fields]],
    options: argparse.Namespace,
    **fields: object,
) -> dict[str, list[sweep.Run]]:
    """The runs of every row, one per seed; runs what is not finished.

    A row is what it changes in the configuration, or a function of the seed that returns that. `fields` are
    those of all rows.
    """
    steps = {"steps": options.steps} if options.steps else {}
    runs = {
        name: [
            sweep.Run(
                name=f"{name}, seed {seed}",
                config=options.config,
                workdir=Path(options.out) / f"{number}-seed{seed}",
                fields={
                    **_QUIET,
                    **fields,
                    **(own(seed) if callable(own) else own),
                    "seed": seed,
                    **steps,
                },
            )
            for seed in options.seeds.split(",")
        ]
        for number, (name, own) in enumerate(rows.items())
    }
    every = [one for of_row in runs.values() for one in of_row]
    failed = sweep.run_all(sorted(every, key=lambda one: one.fields["seed"]), jobs=options.jobs)
    if failed:
        raise SystemExit(f"error: {len(failed)} runs failed; see log.txt in their workdirs")
    return runs
