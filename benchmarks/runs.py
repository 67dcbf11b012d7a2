"""What benchmarks that train share: options, the fields of a method, rows with several seeds."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks import workload
from semivl_jax import sweep
from semivl_jax.train import methods

# Evaluate at the end only, without pictures.
_QUIET = {
    "evaluation.every_steps": 1_000_000,
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


def method_fields(config: ConfigDict, name: str) -> dict[str, object]:
    """Fields that choose another method on the command line of a configuration.

    Values that the configuration gives to fields of its own method which the other one does not have go
    back to their defaults; else they are an error.

    Raises:
      ValueError: there is no such method.
    """
    own, before = methods.defaults(name), methods.defaults(config.method.name)
    changed = {
        f"method.{field}": before[field]
        for field, value in config.method.items()
        if field not in own and value != before[field]
    }
    return {"method.name": name, **changed}


def train(
    rows: dict[str, dict[str, object]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Last mIoU (%) per seed of every row; runs what is not finished."""
    config = workload.load_config(options.config)
    steps = {"steps": options.steps} if options.steps else {}
    runs = {
        name: [
            sweep.Run(
                name=f"{name}, seed {seed}",
                config=options.config,
                workdir=Path(options.out) / f"{number}-seed{seed}",
                fields={**of_method(config, fields), "seed": seed, **steps, **_QUIET},
            )
            for seed in options.seeds.split(",")
        ]
        for number, (name, fields) in enumerate(rows.items())
    }
    every = [one for of_row in runs.values() for one in of_row]
    failed = sweep.run_all(sorted(every, key=lambda one: one.fields["seed"]), jobs=options.jobs)
    if failed:
        raise SystemExit(f"error: {len(failed)} runs failed; see log.txt in their workdirs")
    return {name: [one.result().last for one in of_row] for name, of_row in runs.items()}


def of_method(config: ConfigDict, fields: dict[str, object]) -> dict[str, object]:
    """The fields of a row, completed by `method_fields` where it names a method."""
    name = fields.get("method.name")
    return {**method_fields(config, name), **fields} if name else fields
