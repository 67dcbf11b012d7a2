"""Kills, stops and damages runs of configs/tiny.py, and compares what is left with an undisturbed run.

    python -m benchmarks.torture --rounds=100 --out=/tmp/torture

Out: `results.jsonl` with a line per attempt and a table on standard output. The same command continues; an
attempt that is in the file is not repeated. Exit code 1 if something was lost or changed without a word.

    kill        kill -9, in every second round while a checkpoint is written, else at a random moment; the run
                is resumed. The last weights and all metrics must be bitwise those of the undisturbed run.
    stop        SIGTERM at a random moment; one step at most may be repeated. One per four rounds.
    flip        one byte of every file of a checkpoint and of serving/ at a random place, once per round. It
                must be named, or the restored weights must be the same.
    not finite  a learning rate that makes the loss infinite: the run ends by itself and keeps finite weights.
    fuzz        a damaged photo, mask, class list, list of labels or weight file, `--fuzz` in all: it is
                named in a sentence, or what is read is the same. Only formats without a checksum may read as
                something else: photos that are not PNG, text, values of weights made elsewhere.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import fuzz, photos
from semivl_jax import utils
from semivl_jax.inference import bundle
from semivl_jax.reporting import read
from semivl_jax.train import checkpoint

STEPS = 16


class Torture:
    """One folder of attempts; `attempt` runs what is not yet in `results.jsonl`."""

    def __init__(self, out: Path, *, seed: int) -> None:
        self._out, self._seed = out, seed
        self._results = out / "results.jsonl"
        self._done = {line["name"] for line in self.lines()}
        folder = out / "photos"
        if not (folder / "classes.txt").exists():
            with utils.replace_folder(folder) as new:
                photos.make_folder(new, (40, 48), count=8, labelled=4, classes=3)

    def lines(self) -> list[dict[str, Any]]:
        """The results so far."""
        if not self._results.exists():
            return []
        return [json.loads(line) for line in self._results.read_text(encoding="utf8").splitlines()]

    def attempt(self, kind: str, number: int, test: Callable[[random.Random, Path], str]) -> None:
        """`test(random numbers, new working directory)` returns what went wrong, or an empty text."""
        name = f"{kind} {number}"
        if name in self._done:
            return
        workdir = self._out / name.replace(" ", "-")
        shutil.rmtree(workdir, ignore_errors=True)
        problem = test(random.Random(f"{self._seed} {name}"), workdir)
        line = {"name": name, "kind": kind, "problem": problem}
        with self._results.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {problem or 'ok'}", flush=True)
        if not problem:
            shutil.rmtree(workdir, ignore_errors=True)

    def start(self, workdir: Path, *more: str) -> subprocess.Popen[str]:
        """A run as a user starts it."""
        command = [
            sys.executable, "-m", "semivl_jax.main",
            f"--config=configs/tiny.py:{self._out / 'photos'}",
            f"--workdir={workdir}",
            f"--config.data.directory={self._out / 'prepared'}",
            f"--config.text.cache={self._out / 'text'}",
            f"--config.compilation_cache={self._out / 'programs'}",
            f"--config.steps={STEPS}",
            "--config.log_every=1",
            *more,
        ]  # fmt: skip
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )

    def finish(self, workdir: Path, *more: str) -> tuple[int, str]:
        """Exit code and output of a run to its end."""
        process = self.start(workdir, *more)
        output, _ = process.communicate()
        return process.returncode, output

    @property
    def whole(self) -> Path:
        """The undisturbed run with as many cores, whose number changes how XLA rounds."""
        workdir = self._out / f"whole-{len(os.sched_getaffinity(0))}"
        if not (workdir / "report.html").exists():
            shutil.rmtree(workdir, ignore_errors=True)
            code, output = self.finish(workdir)
            if code:
                raise ValueError(f"the undisturbed run ended with exit code {code}: {output}")
        return workdir

    def kill(self, rng: random.Random, workdir: Path, *, saving: bool) -> str:
        """kill -9, then the same command to its end."""
        process = self.start(workdir)
        if saving:
            target = rng.randrange(2, STEPS + 1, 2)
            caught = _wait(process, lambda: _writes_checkpoint(workdir, target))
            time.sleep(rng.uniform(0, 0.03) if caught else 0)
        else:
            _random_moment(rng, process, workdir)
        process.kill()
        process.communicate()
        code, output = self.finish(workdir)
        if code or "Traceback" in output:
            return f"exit code {code}: {output[-500:]}"
        return _difference(self.whole, workdir)

    def stop(self, rng: random.Random, workdir: Path) -> str:
        """SIGTERM during the steps."""
        process = self.start(workdir, "--config.checkpoint.every=1000")
        _random_moment(rng, process, workdir, starting=0.0)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
        steps = checkpoint.steps(workdir / "checkpoints")
        if process.returncode not in (0, 128 + signal.SIGTERM) or "Traceback" in output:
            return f"exit code {process.returncode}: {output[-500:]}"
        lost = _last_step(workdir) - (steps[0] if steps else 0)
        return f"{lost} steps lost" if lost > 1 else ""

    def flip(self, rng: random.Random, workdir: Path) -> str:
        """Every file in turn, read in this process."""
        for folder, reader in (
            (_newest(self.whole), _read_checkpoint),
            (self.whole / "serving", _read_serving),
        ):
            copied = workdir / folder.relative_to(self.whole)
            shutil.copytree(folder, copied)
            intact = reader(copied)
            for path in sorted(path for path in copied.rglob("*") if path.is_file()):
                content = path.read_bytes()
                place = rng.randrange(len(content))
                flipped = bytearray(content)
                flipped[place] ^= 1 << rng.randrange(8)
                path.write_bytes(flipped)
                try:
                    if not _equal(intact, reader(copied)):
                        return f"byte {place} of {path.relative_to(workdir)} changed the result silently"
                except ValueError as error:
                    if path.name not in str(error):
                        return f"byte {place} of {path.relative_to(workdir)} is not named: {error}"
                path.write_bytes(content)
        return ""

    def not_finite(self, rng: random.Random, workdir: Path) -> str:
        """A learning rate far too high."""
        del rng
        code, output = self.finish(
            workdir, "--config.optim.lr=1e30", "--config.steps=64", "--config.max_skipped_steps=4"
        )
        if code != 2 or "not finite" not in output or "Traceback" in output:
            return f"exit code {code}: {output[-500:]}"
        leaves = _read_checkpoint(_newest(workdir)).values()
        return "" if all(np.isfinite(leaf).all() for leaf in leaves) else "weights are not finite"

    def fuzz(self, rng: random.Random, workdir: Path) -> str:
        """One damaged input, read in this process."""
        return fuzz.attempt(rng, workdir)


def _newest(workdir: Path) -> Path:
    directory = workdir / "checkpoints"
    return directory / str(checkpoint.steps(directory)[0])


def _read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Every array by its path, after verifying as an evaluation does."""
    with closing(checkpoint.Checkpoints(folder.parent, keep=1, read_only=True)) as checkpoints:
        checkpoints.verify()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        state = (folder / "state").absolute()
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            checkpointer.metadata(state).item_metadata.tree,
        )
        tree = checkpointer.restore(state, like)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _read_serving(folder: Path) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(bundle.load(folder).variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        leaf.tobytes() == other[name].tobytes() for name, leaf in one.items()
    )


def _difference(one: Path, other: Path) -> str:
    """Where the results of two finished runs differ; empty where they do not."""
    first, second = _read_checkpoint(_newest(one)), _read_checkpoint(_newest(other))
    if not _equal(first, second):
        return "other weights"
    if not _equal(_read_serving(one / "serving"), _read_serving(other / "serving")):
        return "another model in serving/"
    curves, others = read.load(one).curves, read.load(other).curves
    if curves.keys() != others.keys():
        return "other metrics"
    for name in curves.keys() - {"train/images_per_s"}:
        before, after = (
            dict(zip(*map(np.ndarray.tolist, found[name]), strict=True))
            for found in (curves, others)
        )
        # A resumed run also logs its first step, and metrics of the last steps before a kill may be lost.
        for step in before.keys() & after.keys():
            if before[step] != after[step] and before[step] == before[step]:
                return f"{name} of step {step} is {after[step]} instead of {before[step]}"
        if name.startswith("eval/") and before.keys() != after.keys():
            return f"{name} lacks evaluations"
    return ""


def _writes_checkpoint(workdir: Path, step: int) -> bool:
    return any((workdir / "checkpoints").glob(f"{step}.orbax-checkpoint-tmp*"))


def _wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Whether the condition came true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def _random_moment(
    rng: random.Random, process: subprocess.Popen[str], workdir: Path, *, starting: float = 0.2
) -> None:
    """Waits for a random step and part of the next one, or with probability `starting` for some seconds."""
    if rng.random() < starting:
        time.sleep(rng.uniform(0, 15))
        return
    step = rng.randrange(1, STEPS)
    _wait(process, lambda: _last_step(workdir) >= step)
    time.sleep(rng.uniform(0, 0.3))


def _last_step(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _table(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "| attempt | number | failed |"
    yield "| --- | --- | --- |"
    counts = collections.Counter(line["kind"] for line in lines)
    for kind, number in counts.items():
        failed = sum(bool(line["problem"]) for line in lines if line["kind"] == kind)
        yield f"| {kind} | {number} | {failed} |"


def main(argv: list[str]) -> int:
    """Runs all attempts, prints the table and returns the exit code."""
    command = utils.Parser("benchmarks.torture", __doc__)
    command.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    command.add_argument(
        "--fuzz", type=int, default=50, help="damaged inputs; default: %(default)s"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder, kept")
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return utils.run_command(lambda: _run(command.parse_args(argv)))


def _run(options: argparse.Namespace) -> int:
    torture = Torture(options.out, seed=options.seed)
    for number in range(options.rounds):
        torture.attempt("flip", number, torture.flip)
        kind, saving = ("kill in a save", True) if number % 2 else ("kill", False)
        torture.attempt(
            kind,
            number,
            lambda rng, workdir, saving=saving: torture.kill(rng, workdir, saving=saving),
        )
        if number % 4 == 0:
            torture.attempt("stop", number, torture.stop)
    torture.attempt("not finite", 0, torture.not_finite)
    for number in range(options.fuzz):
        torture.attempt("fuzz", number, torture.fuzz)
    lines = torture.lines()
    print("\n".join(_table(lines)))
    return int(any(line["problem"] for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
