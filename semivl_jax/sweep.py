"""Runs one configuration for several methods, splits and seeds, and prints a table.

    python -m semivl_jax.sweep configs/demo.py --methods supervised,semivl
    python -m semivl_jax.sweep configs/voc.py --splits 92,183 --seeds 0,1,2 --out runs/voc
    python -m semivl_jax.sweep configs/voc_ablation.py:clip_init --splits 92,1464 --set batch=16

Every run is a process with its own workdir in OUT, named by split, method and seed as far as they are given.
The same command again skips finished runs, resumes interrupted ones and restarts failed ones; a command with
other settings needs another --out. A failed run does not stop the others. With one job at a time the output
of the runs is shown; `log.txt` of a workdir always has it. At the end `OUT/report.html` compares the finished
runs; the table has the numbers published for recipe=paper beside them. Exit codes: 0 all finished, 1 at least
one run failed, 2 an error in the command, 130 Ctrl-C (the runs save before they stop).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

from semivl_jax import utils
from semivl_jax.reporting import page, read
from semivl_jax.train import methods

_PUBLISHED = Path(__file__).with_name("published_results.json")
_FINISHED = "finished.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """Best and last validation mIoU in percent, of the EMA where there is one."""

    best: float
    last: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: its --config, the fields changed in it, and its workdir."""

    name: str
    config: str
    workdir: Path
    fields: Mapping[str, object]

    def command(self) -> list[str]:
        """The command line that starts or resumes it."""
        return [
            sys.executable,
            "-m",
            "semivl_jax.main",
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *(f"--config.{key}={value}" for key, value in self.fields.items()),
        ]

    def settings(self) -> dict[str, str]:
        """What distinguishes it from other runs in the same workdir."""
        return {"--config": self.config, **{key: str(value) for key, value in self.fields.items()}}

    def result(self) -> Result | None:
        """Its scores; None until it is finished."""
        stored = self._finished()
        return Result(best=stored["best"], last=stored["last"]) if stored else None

    def check(self) -> None:
        """ValueError if the workdir holds a finished run with other settings."""
        now, stored = self.settings(), self._finished().get("settings")
        if stored is None or stored == now:
            return
        key = next(key for key in (*stored, *now) if stored.get(key) != now.get(key))
        raise ValueError(
            f"{self.workdir} holds a finished run with {key} = {stored.get(key, 'its default')} (now "
            f"{now.get(key, 'its default')}); choose another --out, or delete that folder"
        )

    def _finished(self) -> dict[str, Any]:
        path = self.workdir / _FINISHED
        return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def _read_result(workdir: Path) -> Result | None:
    """Scores from the logged metrics; None without an evaluation."""
    if not (workdir / "config.json").exists():
        return None
    run = read.load(workdir)
    _, scores = run.curves.get(run.score, (None, np.zeros(0)))
    return Result(best=float(scores.max()), last=float(scores[-1])) if scores.size else None


def run_all(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    show: bool = False,
    finished: Callable[[], None] = lambda: None,
) -> list[Run]:
    """Runs what is not finished, `jobs` at a time on equal shares of the cores; returns what failed.

    The output of each run is appended to `log.txt` in its workdir, and with `show` printed as well.
    `finished()` is called after each run that ends here with a score, one call at a time.

    Raises:
      ValueError: a workdir holds a finished run with other settings.
    """
    for one in runs:
        one.check()
    one_at_a_time = threading.Lock()
    cores = sorted(os.sched_getaffinity(0))
    shares: Queue[set[int]] = Queue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or set(cores))

    def run(one: Run) -> bool:
        if one.result() is not None:
            print(f"{one.name}: already finished")
            return True
        share, log = shares.get(), one.workdir / "log.txt"
        print(f"{one.name}: running, output in {log}", flush=True)
        try:
            code = _run(one, log, share, show=show)
        finally:
            shares.put(share)
        result = _read_result(one.workdir) if code == 0 else None
        if result is None:
            print(f"{one.name}: failed with exit code {code}; see {log}", flush=True)
            return False
        text = json.dumps({**dataclasses.asdict(result), "settings": one.settings()}) + "\n"
        utils.write_text(one.workdir / _FINISHED, text)
        print(f"{one.name}: best mIoU {result.best:.1f}, last {result.last:.1f}", flush=True)
        with one_at_a_time:
            finished()
        return True

    with ThreadPoolExecutor(jobs) as pool:
        succeeded = list(pool.map(run, runs))
    return [one for one, good in zip(runs, succeeded, strict=True) if not good]


def _run(one: Run, log: Path, cores: set[int], *, show: bool) -> int:
    """Runs it to its end and returns the exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf8") as file,
        subprocess.Popen(
            one.command(),
            stdout=subprocess.PIPE if show else file,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        # Not with preexec_fn, which is unsafe in a process with threads.
        with contextlib.suppress(ProcessLookupError):  # it may have ended already
            os.sched_setaffinity(process.pid, cores)
        for line in process.stdout or ():
            file.write(line)
            print(line, end="", flush=True)
        return process.wait()


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "12.3 ± 0.4" of several values, "12.3" of one, a dash of none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def table(config: str, runs: Mapping[str, Sequence[Run]]) -> str:
    """Markdown: best and last mIoU of each group of `plan` over its seeds and what is published."""
    published = published_values(config)
    rows = [[config, "seeds done", "best mIoU", "last mIoU"]]
    if published:
        rows[0].append("published, recipe=paper")
    rows.append(["---"] * len(rows[0]))
    for group, of_group in runs.items():
        results = [result for one in of_group if (result := one.result()) is not None]
        row = [
            group,
            f"{len(results)} of {len(of_group)}",
            mean_and_deviation([result.best for result in results]),
            mean_and_deviation([result.last for result in results]),
        ]
        if published:
            split = group.removesuffix("semivl").removesuffix(", ")  # the published method
            row.append(str(published.get(split, "–")))
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def published_values(config: str) -> dict[str, float]:
    """Published mIoU by split of a configuration file (with its row); empty where there are none.

    They belong to the recipes paper and default. The split "" is the one that `config` names itself.
    """
    path, _, argument = config.partition(":")
    parts = [part for part in argument.split(",") if part not in ("", "recipe=paper")]
    published = json.loads(_PUBLISHED.read_text(encoding="utf8"))
    key = [Path(path).stem, *parts]
    of_config = published.get(":".join(key[:-1]), {}).get(parts[-1]) if parts else None
    return {"": of_config} if of_config else published.get(":".join(key), {})


def plan(options: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs of every seed, by "SPLIT, METHOD" as far as they are given.

    Raises:
      ValueError: a --set is not KEY=VALUE.
    """
    fields = {}
    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting!r} is not KEY=VALUE, such as batch=16")
        fields[key] = value
    path, _, argument = options.config.partition(":")
    splits = options.splits.split(",") if options.splits else [None]
    chosen = options.methods.split(",") if options.methods else [None]
    groups = {}
    for split, method in itertools.product(splits, chosen):
        names = [name for name in (split, method) if name]
        arguments = [part for part in (argument, split and f"split={split}") if part]
        config = f"{path}:{','.join(arguments)}" if arguments else path
        own = fields | ({"method.name": method} if method else {})
        groups[", ".join(names)] = [
            Run(
                name=", ".join([*names, f"seed {seed}"]),
                config=config,
                workdir=Path(options.out) / utils.as_file_name("-".join([*names, f"seed{seed}"])),
                fields={**own, "seed": seed},
            )
            for seed in options.seeds.split(",")
        ]
    return groups


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("semivl_jax.sweep", __doc__)
    add = command.add_argument
    add("config", help="configuration FILE[:ARGUMENT] without the split")
    add("--methods", default="", help="such as supervised,semivl; default: the configuration's")
    add("--splits", default="", help="such as 92,183; default: the configuration's")
    add("--seeds", default="0", help="seeds of every split, such as 0,1,2; default: %(default)s")
    add("--out", default="", help="folder; default: runs/ and the name of the file")
    add("--jobs", type=int, default=1, help="runs at a time; default: %(default)s")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of every run")
    return command


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    options = parser().parse_args(argv)
    path, _, _ = options.config.partition(":")
    if options.jobs < 1:
        parser().error(f"--jobs {options.jobs} must be 1 or more")
    if not Path(path).is_file():
        parser().error(f"there is no file {path}")
    for name in filter(None, options.methods.split(",")):
        if name not in methods.METHODS:
            parser().error(
                f"--methods {name!r} is unknown; choose from {', '.join(methods.METHODS)}"
            )
    options.out = utils.user_path(options.out or utils.default_workdir(options.config))
    return options


def main(argv: Sequence[str]) -> int:
    """Trains, prints the table and returns the exit code."""
    options = _parse(argv)
    return utils.run_command(lambda: _sweep(options), stopped="stopped; the same command resumes")


def _sweep(options: argparse.Namespace) -> int:
    groups = plan(options)
    runs = [one for of_group in groups.values() for one in of_group]
    failed = run_all(runs, jobs=options.jobs, show=options.jobs == 1)
    print(f"\n{table(options.config, groups)}")
    finished = [one.workdir for one in runs if one.result() is not None]
    if finished:
        print(f"report: {page.write(finished, Path(options.out) / page.NAME)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
