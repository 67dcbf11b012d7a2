"""Reads the files of a workdir into a `Run`.

In: the workdir of a run that is finished, still training, crashed, or not yet evaluated; whatever is missing
is left empty, and lines or files that a kill left incomplete are skipped. Out: curves as float64 arrays
(NaN where a value was not finite), counts of pixels as int64 matrices, paths of pictures.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

Curve = tuple[Int64[np.ndarray, " t"], Float64[np.ndarray, " t"]]
"""Steps and values of a metric."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation (`experiment/run_log.py`)."""

    step: int
    confusion: dict[str, Int64[np.ndarray, "n n"]]
    """True class × prediction, by weights: "student" and, where there is one, "ema"."""
    labels: dict[str, Int64[np.ndarray, "m m"]]
    """True class × label of unlabelled images, by kind of label: those that training would use, and
    "predicted", the most probable class of every pixel. Last row: class not known; last column: no label."""
    image_iou: dict[str, float]

    @property
    def scored(self) -> Int64[np.ndarray, "n n"]:
        """Confusion matrix of the weights that are scored: the EMA where there is one."""
        return self.confusion.get("ema", self.confusion["student"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A workdir. `metadata` is run.json; `evaluations` are the newest two, oldest first."""

    name: str
    workdir: Path
    config: dict[str, Any]
    metadata: dict[str, Any]
    curves: dict[str, Curve]
    evaluations: tuple[Evaluation, ...]
    samples: dict[str, Any] | None
    guidance: dict[str, Any] | None = None
    """How right the variants of guidance are (`experiment/guidance_quality.py`)."""

    @property
    def classes(self) -> list[str]:
        """Class names by label value."""
        return self.metadata.get("classes", [])

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """One entry per process that trained, oldest first."""
        return self.metadata.get("sessions", [])

    @property
    def steps(self) -> int:
        """The last step with a logged metric."""
        return max((int(steps[-1]) for steps, _ in self.curves.values()), default=0)

    @property
    def score(self) -> str:
        """Name of the metric that selects the best weights."""
        return "eval/miou_ema" if "eval/miou_ema" in self.curves else "eval/miou"

    def best(self) -> tuple[int, float] | None:
        """Step and value of the highest score; None without an evaluation."""
        curve = self.curves.get(self.score)
        if curve is None or not np.isfinite(curve[1]).any():
            return None
        index = int(np.nanargmax(curve[1]))
        return int(curve[0][index]), float(curve[1][index])


def load(workdir: Path, *, name: str = "") -> Run:
    """Reads a workdir; `name` defaults to that of the folder.

    Raises:
      ValueError: the folder is not the workdir of a run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{workdir} holds no run (there is no config.json); name a workdir of main"
        )
    config = _json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a configuration; name a workdir of main")
    metadata = _json(workdir / "run.json") or {}
    return Run(
        name=name or workdir.resolve().name,
        workdir=workdir,
        config=config,
        metadata=metadata,
        curves=_curves(workdir / "metrics.jsonl"),
        evaluations=_evaluations(workdir / "evaluations", len(metadata.get("classes", []))),
        samples=_json(workdir / "samples" / "samples.json"),
        guidance=_json(workdir / "guidance.json"),
    )


def _json(path: Path) -> Any:
    """Content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _curves(path: Path) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = defaultdict(dict)
    if path.exists():
        for text in path.read_text(encoding="utf8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                step = int(line.pop("step"))
            except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
                continue
            for key, value in line.items():
                points[key][step] = math.nan if value is None else float(value)
    curves = {}
    for key, by_step in points.items():
        steps = sorted(by_step)
        curves[key] = (np.asarray(steps, np.int64), np.asarray([by_step[s] for s in steps]))
    return curves


def _evaluations(folder: Path, num_classes: int) -> tuple[Evaluation, ...]:
    found: list[Evaluation] = []
    for path in sorted(folder.glob("*.npz"), reverse=True):
        try:
            # Opened here, because NumPy leaves a damaged file open.
            with path.open("rb") as file, np.load(file) as arrays:
                evaluation = _evaluation(int(path.stem), dict(arrays))
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            continue
        if len(evaluation.scored) == num_classes:
            found.append(evaluation)
        if len(found) == 2:
            break
    return tuple(reversed(found))


def _evaluation(step: int, arrays: dict[str, np.ndarray]) -> Evaluation:
    def named(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    ids, image_iou = arrays["ids"].tolist(), arrays["image_iou"].tolist()
    return Evaluation(
        step=step,
        confusion=named("confusion/"),
        labels={name: _square(counts) for name, counts in named("labels/").items()},
        image_iou=dict(zip(ids, image_iou, strict=True)),
    )


def _square(counts: np.ndarray) -> np.ndarray:
    """Runs that counted only images with masks have no row for pixels whose class is not known."""
    return np.pad(counts, ((0, counts.shape[1] - len(counts)), (0, 0)))
