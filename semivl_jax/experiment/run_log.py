"""The run log: files in the workdir from which the report is made.

    run.json                  metadata (data set, classes, palette, length) and one entry per session: start,
                              duration, steps, outcome, command, versions, devices, commit. A session lasts
                              from the start or resumption of a process to its end.
    evaluations/0000250.npz   one file per evaluation:
                                confusion/NAME  int64 [n, n], true class × prediction ("student", "ema")
                                labels/NAME     int64 [n + 1, n + 1], true class × label of unlabelled images:
                                                "pseudo" and "guidance", as training would use them, and
                                                "predicted", the most probable class of every pixel. Last row:
                                                class not known; last column: no label
                                ids, image_iou  validation images and their mean IoU in percent

A resumed run continues these files. Evaluations that it will repeat are removed first. A session that was
killed is closed with the time and step of the last line of `metrics.jsonl`.
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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64

from semivl_jax import utils
from semivl_jax.data.source import Source
from semivl_jax.experiment.data import Data
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.train.loop import Stopped

_RUN, _EVALUATIONS = "run.json", "evaluations"
_PACKAGES = ("semivl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_ROOT = Path(__file__).parents[2]


class RunLog:
    """Writes the run log of one workdir, in the first process only."""

    def __init__(self, workdir: Path) -> None:
        self._workdir, self._writes = workdir, jax.process_index() == 0

    def discard_evaluations_after(self, step: int) -> None:
        """Removes the evaluations that a run resumed at `step` will repeat."""
        if not self._writes:
            return
        for path in (self._workdir / _EVALUATIONS).glob("*.npz"):
            if int(path.stem) > step:
                path.unlink()

    def write_evaluation(
        self,
        step: int,
        *,
        confusion: Mapping[str, Int64[np.ndarray, "n n"]],
        labels: Mapping[str, Int64[np.ndarray, "n+1 n+1"]],
        image_iou: Mapping[str, float],
    ) -> None:
        """Writes one evaluation; an earlier one of the same step is replaced."""
        if not self._writes:
            return
        arrays = {f"confusion/{name}": counts for name, counts in confusion.items()}
        arrays |= {f"labels/{name}": counts for name, counts in labels.items()}
        arrays["ids"] = np.asarray(list(image_iou))
        arrays["image_iou"] = np.asarray(list(image_iou.values()), np.float32)
        path = self._workdir / _EVALUATIONS / f"{step:07d}.npz"
        with utils.atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @contextmanager
    def session(self, metadata: Mapping[str, Any], *, first_step: int) -> Iterator[None]:
        """Writes metadata and the start of a session; on exit its duration, last step and outcome.

        Raises:
          ValueError: run.json is damaged, or the run was started with other images.
        """
        if not self._writes:
            yield
            return
        path = self._workdir / _RUN
        before = _read(path)
        _check_same_images(before, metadata, path)
        earlier = _close_killed(before.get("sessions", []), self._workdir)
        session = {"started": _now(), "first_step": first_step, "outcome": "running", **_machine()}
        start = time.monotonic()

        def write(**end: Any) -> None:
            run = {**metadata, "sessions": [*earlier, {**session, **end}]}
            utils.write_text(path, json.dumps(run, indent=1, ensure_ascii=False) + "\n")

        write()
        try:
            yield
            outcome = "finished"
        except BaseException as error:
            outcome = "stopped" if isinstance(error, Stopped) else "failed"
            raise
        finally:
            _, last = _last_logged(self._workdir)
            seconds = round(time.monotonic() - start, 1)
            write(outcome=outcome, seconds=seconds, last_step=max(last, first_step))


def metadata(experiment: Experiment, data: Data, *, score: str) -> dict[str, Any]:
    """The constant part of run.json; `score` names the metric that selects the best weights."""
    info, schedule = experiment.info, experiment.schedule
    return {
        "dataset": info.name,
        "images": {
            "labelled": len(data.split.labelled),
            "unlabelled": len(data.split.unlabelled),
            "validation": len(data.validation),
        },
        "classes": list(info.classes),
        "palette": info.palette.tolist(),
        "balance": {
            "labelled": class_balance(data.train, data.split.labelled),
            "validation": class_balance(data.validation, range(len(data.validation))),
        },
        "total_steps": schedule.total_steps,
        "images_per_step": schedule.batch,
        "score": score,
    }


def class_balance(source: Source, indices: Iterable[int]) -> dict[str, list[int]]:
    """Pixels of each class, and images in which it occurs."""
    pixels, images = (of[: source.info.num_classes] for of in source.count_classes(indices))
    return {"pixels": pixels.tolist(), "images": images.tolist()}


def _last_logged(workdir: Path) -> tuple[float, int]:
    """Time (seconds since 1970) and step of the last line of metrics.jsonl; (0, 0) without one."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0.0, 0
    step = 0
    for line in path.read_text(encoding="utf8").splitlines():
        try:
            step = max(step, json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a line that was not completed before a kill
    return path.stat().st_mtime, step


def _close_killed(sessions: list[dict[str, Any]], workdir: Path) -> list[dict[str, Any]]:
    """The earlier sessions; if the last one has no end, it is marked as killed."""
    if sessions and sessions[-1].get("outcome") == "running":
        written, step = _last_logged(workdir)
        start = datetime.fromisoformat(sessions[-1]["started"]).timestamp()
        seconds = round(max(0.0, written - start), 1)
        end = {"outcome": "killed", "seconds": seconds, "last_step": step}
        sessions = [*sessions[:-1], {**sessions[-1], **end}]
    return sessions


def _check_same_images(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    for key, what in (
        ("classes", "classes"),
        ("images", "numbers of images"),
        ("balance", "masks"),
    ):
        if key in before and before[key] != json.loads(json.dumps(now[key])):
            raise ValueError(
                f"the {what} of the data set are not those that the run began with, see {key!r} in {path}; "
                "restore the images (data.folder may be another path to the same ones), or choose another "
                "--workdir"
            )


def _read(path: Path) -> dict[str, Any]:
    """run.json; empty without one."""
    if not path.exists():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf8"))
        return {**run, "sessions": list(run["sessions"])}
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
        "source": _source(),
    }


def _command() -> str:
    """The command line that repeats this run."""
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
            continue  # the source folder, not installed
    return found


def _source() -> dict[str, Any] | None:
    """Commit of the source code and whether tracked files differ from it; None outside of a git clone."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        changed = bool(_git("status", "--porcelain", "-uno"))
        return {"commit": _git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None  # git is not installed, or refuses a clone that belongs to another user


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
