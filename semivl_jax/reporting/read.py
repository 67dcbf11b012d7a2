"""The plain files of a workdir as a `Run`, whatever part of them is there.

In: a folder that `main` trained in, also while it trains, after a crash, or before its first evaluation.
Out: curves as float64 arrays (NaN where a value was not finite), confusion matrices int64, paths of
pictures. Lines and files cut short by a kill are left out.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """Counts of one evaluation (`record.py`); None or empty where they were not made."""

    step: int
    student: Int64[np.ndarray, "n n"]
    average: Int64[np.ndarray, "n n"] | None
    pseudo: Int64[np.ndarray, "n m"] | None
    guidance: Int64[np.ndarray, "n m"] | None
    image_iou: dict[str, float]

    @property
    def deciding(self) -> Int64[np.ndarray, "n n"]:
        """Counts of the weights that decide which state is best: the average where one is kept."""
        return self.student if self.average is None else self.average


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A workdir. `facts` is run.json, `evaluations` the newest two, oldest first."""

    name: str
    workdir: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    curves: dict[str, Curve]
    evaluations: tuple[EvaluationRecord, ...]
    samples: dict[str, Any] | None

    @property
    def classes(self) -> list[str]:
        """Names by label value."""
        return self.facts.get("classes", [])

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """From start or resumption to the end of a process each."""
        return self.facts.get("sessions", [])

    @property
    def steps(self) -> int:
        """The last step that wrote scalars."""
        return max((int(steps[-1]) for steps, _ in self.curves.values()), default=0)

    def best(self) -> tuple[int, float] | None:
        """Step and value of the highest deciding mIoU."""
        curve = self.curves.get("eval/miou_ema") or self.curves.get("eval/miou")
        if curve is None or not np.isfinite(curve[1]).any():
            return None
        place = int(np.nanargmax(curve[1]))
        return int(curve[0][place]), float(curve[1][place])


def load(workdir: Path, *, name: str = "") -> Run:
    """Reads a workdir.

    Raises:
      ValueError: the folder is no workdir of a run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{workdir} holds no run (there is no config.json); name a workdir of main"
        )
    config = _json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no configuration; name a workdir of main")
    facts = _json(workdir / "run.json") or _facts_without_run_json(workdir)
    samples = _json(workdir / "samples" / "samples.json")
    return Run(
        name=name or workdir.resolve().name,
        workdir=workdir,
        config=config,
        facts=facts,
        curves=_curves(workdir / "metrics.jsonl"),
        evaluations=_evaluations(workdir / "evaluations", len(facts.get("classes", []))),
        samples=samples,
    )


def _facts_without_run_json(workdir: Path) -> dict[str, Any]:
    """Names and colours as the exported weights know them, for runs that wrote no run.json."""
    classes = _json(workdir / "serving" / "classes.json") or {}
    return {key: classes[key] for key in ("classes", "palette") if key in classes}


def _json(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or damaged."""
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


def _evaluations(folder: Path, num_classes: int) -> tuple[EvaluationRecord, ...]:
    found: list[EvaluationRecord] = []
    for path in sorted(folder.glob("*.npz"), reverse=True):
        try:
            # Opened here, because NumPy leaves a damaged file open.
            with path.open("rb") as file, np.load(file) as arrays:
                there = dict(arrays)
            record = EvaluationRecord(
                step=int(path.stem),
                student=there["student"],
                average=there.get("average"),
                pseudo=there.get("pseudo"),
                guidance=there.get("guidance"),
                image_iou=dict(
                    zip(there["ids"].tolist(), there["image_iou"].tolist(), strict=True)
                ),
            )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            continue
        if len(record.student) == num_classes:
            found.append(record)
        if len(found) == 2:
            break
    return tuple(reversed(found))
