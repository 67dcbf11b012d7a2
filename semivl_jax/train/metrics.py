"""Scalars and pictures of a run: `metrics.jsonl` and TensorBoard events.

In: Python floats by name and uint8 RGB pictures. Out: files in the workdir. `metrics.jsonl` has one JSON
object per line, each with its `step`; lines of steps that a resumed run repeats are dropped first.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from semivl_jax import utils

# tensorboardX imports torch where it is installed, which takes more than a second in every process.
_torch = sys.modules.get("torch")
sys.modules["torch"] = None
try:
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
finally:
    del sys.modules["torch"]
    if _torch is not None:
        sys.modules["torch"] = _torch

FLUSH_INTERVAL = 60.0
"""Seconds after which the events are written out."""


class MetricWriter:
    """Writes scalars to both files, in the first process of a run; a context manager.

    `next_step` and `evaluated` are those of `checkpoint.LoopState`.
    """

    def __init__(self, workdir: Path, *, next_step: int, evaluated: int = -1) -> None:
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path = workdir / "metrics.jsonl"
        _drop_repeated_lines(path, next_step, evaluated)
        self._path, self._folder = path, workdir / "tensorboard"
        with utils.writing(path):
            self._file = path.open("a", encoding="utf8")
        with utils.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Not SummaryWriter: its thread ends at the first error, and training then waits for it forever.
            self._events = EventsWriter(str(self._folder / "events"))
            self._flushed = time.monotonic()
            self._event(next_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; non-finite values become null."""
        if not self._writes:
            return
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with utils.writing(self._path):
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        for name, value in values.items():
            self._event(step, summary=summary.scalar(name, value))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an RGB picture (height × width × 3, uint8) to the events."""
        if self._writes:
            self._event(step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._writes:
            try:
                with utils.writing(self._path):
                    self._file.close()
            finally:
                with utils.writing(self._folder):
                    self._events.close()

    def _event(self, step: int, **content: Any) -> None:
        with utils.writing(self._folder):
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))
            if time.monotonic() - self._flushed > FLUSH_INTERVAL:
                self._events.flush()
                self._flushed = time.monotonic()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_repeated_lines(path: Path, next_step: int, evaluated: int) -> None:
    """Keeps complete lines of the first `next_step` updates and of the evaluations up to `evaluated`."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf8").splitlines():
        try:
            line = json.loads(text)
            step = line["step"]
        except (json.JSONDecodeError, KeyError):
            continue
        is_evaluation = any(name.startswith("eval/") for name in line)
        if step <= (evaluated if is_evaluation else next_step):
            kept.append(text)
    utils.write_text(path, "".join(line + "\n" for line in kept))
