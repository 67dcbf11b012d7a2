"""What metrics.jsonl and the events hold, also after a run was cut short."""

import contextlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from semivl_jax import utils
from semivl_jax.train.metrics import MetricWriter


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Every event of every file: length, checksum, message, checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_scalars_and_pictures_reach_both_places(tmp_path):
    with MetricWriter(tmp_path, next_step=0) as writer:
        writer.scalars(3, {"train/loss": 0.5, "a": math.nan, "b": math.inf})
        writer.picture(3, "photo", np.zeros((4, 6, 3), np.uint8))
    assert lines(tmp_path) == [{"step": 3, "train/loss": 0.5, "a": None, "b": None}]
    values = {v.tag: v for event in events(tmp_path) for v in event.summary.value}
    assert values["train/loss"].simple_value == 0.5
    assert (values["photo"].image.height, values["photo"].image.width) == (4, 6)
    assert {event.step for event in events(tmp_path) if event.summary.value} == {3}


def write_until(workdir, last):
    with MetricWriter(workdir, next_step=0) as writer:
        for step in range(1, last + 1):
            writer.scalars(step, {"train/loss": float(step)})
            if step % 2 == 0:
                writer.scalars(step, {"eval/miou": float(step)})


def kept(workdir):
    return [(line["step"], "eval/miou" in line) for line in lines(workdir)]


def test_lines_that_a_resumed_run_writes_again_are_dropped(tmp_path):
    write_until(tmp_path, 6)
    with MetricWriter(tmp_path, next_step=4, evaluated=4) as writer:
        writer.scalars(5, {"train/loss": 5.5})
    assert kept(tmp_path) == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False)
    ]  # fmt: skip
    assert lines(tmp_path)[-1]["train/loss"] == 5.5
    # TensorBoard forgets the same steps by the start event of the resumed run.
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts[-1] == 5


def test_an_evaluation_that_comes_again_is_dropped(tmp_path):
    """The checkpoint of step 4 may stem from before the evaluation of step 4."""
    write_until(tmp_path, 4)
    with MetricWriter(tmp_path, next_step=4, evaluated=2):
        pass
    assert kept(tmp_path) == [(1, False), (2, False), (2, True), (3, False), (4, False)]


def test_a_line_cut_short_by_a_kill_goes(tmp_path):
    write_until(tmp_path, 1)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "train/lo')
    with MetricWriter(tmp_path, next_step=2) as writer:
        writer.scalars(2, {"train/loss": 2.0})
    assert kept(tmp_path) == [(1, False), (2, False)]


def test_torch_is_not_imported_where_it_is_installed(tmp_path):
    """Whoever wants it can still import it later, and tensorboardX stays imported."""
    (tmp_path / "torch.py").write_text("print('imported')\n")
    program = """
import sys
import semivl_jax.train.metrics
print("tensorboardX" in sys.modules, "torch" in sys.modules)
import torch
"""
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.getcwd()))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["True", "False", "imported"]


@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_ends_the_run_with_the_file(tmp_path, full):
    """TensorBoard's events are written by the thread that trains, which sees the error."""
    with pytest.raises(utils.SystemFault, match=f"{full}: No space left on device; free"):  # noqa: SIM117
        with MetricWriter(tmp_path, next_step=0) as writer:
            file = (
                writer._file
                if full == "metrics.jsonl"
                else writer._events._py_recordio_writer._writer
            )
            with open("/dev/full", "wb") as device:
                os.dup2(device.fileno(), file.fileno())
            for step in range(1, 4):
                writer.scalars(step, {"train/loss": 1.0})
    with contextlib.suppress(OSError):
        file.close()
    with MetricWriter(tmp_path, next_step=0) as writer:
        writer.scalars(1, {"train/loss": 1.0})
    assert kept(tmp_path)[-1] == (1, False)
