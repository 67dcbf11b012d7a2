"""Runs one configuration for several splits and seeds, and prints a table beside the published numbers.

    python -m semivl_jax.sweep configs/voc.py --splits 92,183 --seeds 0,1,2 --out runs/voc
    python -m semivl_jax.sweep configs/voc_ablation.py:clip_init --splits 92,1464 --set batch=16

Every run is a process of its own in `OUT/SPLIT-seedN`. The same command again skips what is done, goes on
with what was interrupted, and tries again what failed. A run that fails stops no other; it is reported and
the exit code is 1. Exit codes otherwise: 0 all done, 2 something in the command is wrong, 130 Ctrl-C (the
runs save before they stop).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from semivl_jax import utils
from semivl_jax.experiment.workdir import write

_PUBLISHED = Path(__file__).with_name("published_results.json")
_DONE = "finished.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: its --config, the fields changed in it, and its folder."""

    name: str
    config: str
    workdir: Path
    fields: Mapping[str, object]

    def command(self) -> list[str]:
        """The command line that starts it, or goes on with it."""
        return [
            sys.executable,
            "-m",
            "semivl_jax.main",
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *(f"--config.{key}={value}" for key, value in self.fields.items()),
        ]

    def result(self) -> Result | None:
        """What it reached, None as long as it is not finished."""
        path = self.workdir / _DONE
        return Result(**json.loads(path.read_text(encoding="utf8"))) if path.exists() else None


@dataclasses.dataclass(frozen=True)
class Result:
    """Validation mIoU in percent: the best evaluation on the way, and the last one.

    Of the average of the student where one is kept.
    """

    best: float
    last: float


def read_scores(workdir: Path) -> Result | None:
    """The scores of a run from its curves; None without an evaluation."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return None
    lines = map(json.loads, path.read_text(encoding="utf8").splitlines())
    scores = [line.get("eval/miou_ema", line["eval/miou"]) for line in lines if "eval/miou" in line]
    return Result(best=max(scores), last=scores[-1]) if scores else None


def run_all(
    runs: Sequence[Run], *, jobs: int = 1, report: Callable[[str], None] = print
) -> list[Run]:
    """Runs what is not finished, `jobs` at a time on shares of the cores; returns what failed.

    Output goes to `log.txt` in the folder of each run.
    """
    cores = sorted(os.sched_getaffinity(0))
    shares: Queue[set[int]] = Queue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or set(cores))

    def run(one: Run) -> bool:
        if one.result() is not None:
            report(f"{one.name}: done before")
            return True
        share = shares.get()
        report(f"{one.name}: running, output in {one.workdir / 'log.txt'}")
        try:
            one.workdir.mkdir(parents=True, exist_ok=True)
            with (one.workdir / "log.txt").open("a", encoding="utf8") as log:
                process = subprocess.Popen(one.command(), stdout=log, stderr=subprocess.STDOUT)
                # From here and not between fork and exec, where threads of this process forbid Python.
                with contextlib.suppress(ProcessLookupError):  # it may have ended already
                    os.sched_setaffinity(process.pid, share)
                code = process.wait()
        finally:
            shares.put(share)
        result = read_scores(one.workdir) if code == 0 else None
        if result is None:
            report(f"{one.name}: failed with exit code {code}; see {one.workdir / 'log.txt'}")
            return False
        write(one.workdir / _DONE, json.dumps(dataclasses.asdict(result)))
        report(f"{one.name}: best mIoU {result.best:.1f}, last {result.last:.1f}")
        return True

    with ThreadPoolExecutor(jobs) as pool:
        succeeded = list(pool.map(run, runs))
    return [one for one, good in zip(runs, succeeded, strict=True) if not good]


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "12.3 ± 0.4" of several values, "12.3" of one, a dash of none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def table(config: str, runs: Mapping[str, Sequence[Run]]) -> str:
    """Markdown: our best and last mIoU by split over the seeds, and the published value."""
    published = published_values(config)
    lines = [
        f"| {config} | seeds done | best mIoU | last mIoU | published |",
        "| --- | --- | --- | --- | --- |",
    ]
    for split, of_split in runs.items():
        results = [result for one in of_split if (result := one.result()) is not None]
        best = mean_and_deviation([result.best for result in results])
        last = mean_and_deviation([result.last for result in results])
        theirs = published.get(split, "–")
        lines.append(
            f"| {split} | {len(results)} of {len(of_split)} | {best} | {last} | {theirs} |"
        )
    return "\n".join(lines)


def published_values(config: str) -> dict[str, float]:
    """Published mIoU by split for a configuration file (with its row); empty where none is known.

    Only trainings of the method itself have published values, not other recipes.
    """
    path, _, argument = config.partition(":")
    parts = [part for part in argument.split(",") if part not in ("", "recipe=paper")]
    facts = json.loads(_PUBLISHED.read_text(encoding="utf8"))
    return facts.get(":".join([Path(path).stem, *parts]), {})


def plan(options: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs by split; ValueError for a --set that is no KEY=VALUE."""
    fields = {}
    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting!r} is no KEY=VALUE, such as batch=16")
        fields[key] = value
    path, _, argument = options.config.partition(":")
    runs = {}
    for split in options.splits.split(","):
        # A row comes before the split, options such as recipe=paper may come anywhere.
        config = f"{path}:{','.join(filter(None, [argument, f'split={split}']))}"
        runs[split] = [
            Run(
                name=f"{split}, seed {seed}",
                config=config,
                workdir=Path(options.out) / f"{split}-seed{seed}",
                fields={**fields, "seed": seed},
            )
            for seed in options.seeds.split(",")
        ]
    return runs


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.sweep", __doc__)
    made.add_argument("config", help="configuration FILE[:ARGUMENT] without the split")
    made.add_argument("--splits", required=True, help="published splits, such as 92,183")
    made.add_argument(
        "--seeds", default="0", help="seeds of every split, such as 0,1,2; default: %(default)s"
    )
    made.add_argument("--out", default="", help="folder; default: runs/ and the name of the file")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time; default: %(default)s")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of every run"
    )
    return made


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    options = parser().parse_args(argv)
    if options.jobs < 1:
        parser().error(f"--jobs {options.jobs} must be 1 or more")
    if not Path(options.config.partition(":")[0]).is_file():
        parser().error(f"there is no file {options.config.partition(':')[0]}")
    name = options.config.replace(":", "-").replace(",", "-")
    options.out = options.out or f"runs/{Path(name).name.replace('.py', '')}"
    return options


def main(argv: Sequence[str]) -> int:
    """Runs, prints the table and returns the exit code."""
    options = _parse(argv)
    try:
        runs = plan(options)
        failed = run_all([one for several in runs.values() for one in several], jobs=options.jobs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{table(options.config, runs)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
