"""What a run remembers for its report, in plain files of the workdir.

    run.json                     data set, classes and colours, length, and per session (from start or
                                 resumption to the end of the process): when, how long, which steps, how it
                                 ended, command, versions, devices, state of the source code
    evaluations/0000250.npz      one file per evaluation: confusion matrices int64 [n, n] of `student` and
                                 `average`; counts [n, n + 1] of held-back `pseudo` and `guidance` labels
                                 (targets.py); `ids` and `image_iou` (percent) of the validation images

A resumed run continues these files: evaluations that it will do again are dropped first, and a session
that was killed is closed with its last sign of life, the time of `metrics.jsonl`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from semivl_jax.experiment import workdir as workdir_lib
from semivl_jax.experiment.experiment import Data, Experiment

RUN, EVALUATIONS = "run.json", "evaluations"
_PACKAGES = ("semivl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_ROOT = Path(__file__).parents[2]


class Record:
    """The two places of one workdir; only the first process writes."""

    def __init__(self, workdir: Path) -> None:
        self._workdir, self._writes = workdir, jax.process_index() == 0

    def drop_evaluations_after(self, step: int) -> None:
        """Removes evaluations that a run which stands at `step` will do again."""
        if not self._writes:
            return
        for path in (self._workdir / EVALUATIONS).glob("*.npz"):
            if int(path.stem) > step:
                path.unlink()

    def evaluation(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the arrays of one evaluation; a second time at the same step replaces the first."""
        if not self._writes:
            return
        folder = self._workdir / EVALUATIONS
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "new.tmp"
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, folder / f"{step:07d}.npz")

    @contextmanager
    def session(self, facts: Mapping[str, Any], *, first_step: int) -> Iterator[None]:
        """Notes the start now and, on leaving, duration and how it ended."""
        if not self._writes:
            yield
            return
        path = self._workdir / RUN
        before = _closed(_sessions(path), self._workdir)
        session = {"started": _now(), "first_step": first_step, "outcome": "running", **_machine()}
        began = time.monotonic()

        def write(**more: Any) -> None:
            sessions = [*before, {**session, **more}]
            text = json.dumps({**facts, "sessions": sessions}, indent=1, ensure_ascii=False)
            workdir_lib.write(path, text)

        write()
        outcome = "failed"
        try:
            yield
            outcome = "finished"
        except BaseException as error:
            outcome = "stopped" if type(error).__name__ == "Stopped" else "failed"
            raise
        finally:
            _, last = last_sign(self._workdir)
            seconds = round(time.monotonic() - began, 1)
            write(outcome=outcome, seconds=seconds, last_step=max(last, first_step))


def facts(experiment: Experiment, data: Data, *, score: str) -> dict[str, Any]:
    """What does not change during a run, as JSON types; `score` decides which weights are best."""
    info, clock = experiment.info, experiment.clock
    parts = {"labelled": (data.train, data.split.labelled),
             "validation": (data.validation, range(len(data.validation)))}  # fmt: skip
    balance = {}
    for name, (source, indices) in parts.items():
        pixels, images = np.zeros((2, 256), np.int64)
        for index in indices:
            for value, count in (source.pixels[index] or {}).items():
                pixels[value] += count
                images[value] += 1
        balance[name] = {"pixels": pixels[: info.num_classes].tolist(),
                         "images": images[: info.num_classes].tolist()}  # fmt: skip
    return {
        "dataset": info.name,
        "images": {
            "labelled": len(data.split.labelled),
            "unlabelled": len(data.split.unlabelled),
            "validation": len(data.validation),
        },
        "classes": list(info.classes),
        "palette": info.palette.tolist(),
        "balance": balance,
        "total_steps": clock.total_steps,
        "images_per_step": clock.batch,
        "score": score,
    }


def last_sign(workdir: Path) -> tuple[float, int]:
    """When the run last wrote scalars (seconds since 1970) and of which step; (0, 0) before any."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0.0, 0
    step = 0
    for line in path.read_text(encoding="utf8").splitlines():
        try:
            step = max(step, json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # cut short by a kill
    return path.stat().st_mtime, step


def _closed(sessions: list[dict[str, Any]], workdir: Path) -> list[dict[str, Any]]:
    """The sessions so far, a last one that never ended marked as killed."""
    if sessions and sessions[-1].get("outcome") == "running":
        written, step = last_sign(workdir)
        start = datetime.fromisoformat(sessions[-1]["started"]).timestamp()
        seconds = round(max(0.0, written - start), 1)
        end = {"outcome": "killed", "seconds": seconds, "last_step": step}
        sessions = [*sessions[:-1], {**sessions[-1], **end}]
    return sessions


def _sessions(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf8"))["sessions"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it, only the report needs it"
        ) from error


def _machine() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "command": _command(),
        "versions": {"python": platform.python_version(), **_versions()},
        "devices": {
            "count": len(devices),
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "processes": jax.process_count(),
            "cpu_cores": os.cpu_count(),
        },
        "source": source_state(),
    }


def _command() -> str:
    """What to type to do the same again."""
    program = Path(sys.argv[0]).resolve()
    if program.is_relative_to(_ROOT) and program.suffix == ".py":
        module = ".".join(program.relative_to(_ROOT).with_suffix("").parts)
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from the source folder without installation
    return found


def source_state() -> dict[str, Any] | None:
    """Commit of the source code and whether files differ from it; None outside of a git clone."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or a clone of someone else


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(_ROOT), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
