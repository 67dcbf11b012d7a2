"""Two processes with four devices each compute what one process with eight does."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from semivl_jax import buckets
from semivl_jax.reporting import read
from semivl_jax.train import distributed
from tests import gcs
from tests.command import ROOT, command, environment, free_address, run
from tests.photos import make_folder
from tests.test_resume import last_state

STEPS = 3

# Messages of Gloo, the communication library, whose threads write these pieces in any order, and warnings of
# XLA's partitioner and of TensorStore.
LIBRARIES = re.compile(
    r"[IW]\d+ [^\n]*(?:spmd_partitioner|google_auth_provider)[^\n]*|"
    r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d+|\n"
)

# Logs the paths that a process opens for writing, renames, creates or removes; imported by every Python
# process of the test.
AUDIT = """
import os, sys
log = os.environ.get("AUDIT_LOG")
if log:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def note(event, arguments):
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if event in ("open", "os.rename", "os.mkdir", "os.remove"):
            os.write(descriptor, f"{arguments[0]}\\n".encode("utf8", "replace"))
    sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    make_folder(root / "photos", validation=3)  # shares of two images and one
    (root / "audit").mkdir()
    (root / "audit" / "sitecustomize.py").write_text(AUDIT)
    return root


def options(place, name, *more):
    """tests/train/test_meshes.py explains the choice of optimiser, rate and confidence mode."""
    return [
        f"--config=configs/tiny.py:{place / 'photos'}",
        f"--workdir={place / name}",
        f"--config.data.directory={place / 'prepared'}",
        f"--config.text.cache={place / 'text'}",
        "--config.compilation_cache=",
        f"--config.steps={STEPS}",
        f"--config.evaluation.every_steps={STEPS}",
        "--config.checkpoint.every=100",
        "--config.batch=8",
        "--config.log_every=1",
        "--config.optim.name=sgd",
        "--config.optim.lr=0.002",
        "--config.method.confidence_mode=pixelavg",
        "--config.method.name=unimatch",  # test_meshes has the whole method
        *more,
    ]


def start_two(place, name, *more):
    address, started = free_address(), []
    for index in range(2):
        flags = [f"--coordinator_address={address}", "--num_processes=2", f"--process_id={index}"]
        variables = environment(devices=4)
        variables["PYTHONPATH"] = f"{place / 'audit'}:{variables.get('PYTHONPATH', '')}"
        variables["AUDIT_LOG"] = str(place / f"written-{index}")
        process = subprocess.Popen(
            command(*options(place, name, *flags, *more)),
            cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
    return started


def finish(started):
    try:
        return [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def stopped(place):
    """Two processes with parameters sharded over the devices of each; the first one gets SIGTERM.

    The signal handler is installed before the folder of checkpoints, long before the first step.
    """
    started = start_two(place, "two", "--config.mesh.fsdp=4")
    end = time.monotonic() + 600
    while not (place / "two" / "checkpoints").exists():
        assert all(process.poll() is None for process in started), finish(started)
        assert time.monotonic() < end, finish(started)
        time.sleep(0.05)
    started[0].send_signal(signal.SIGTERM)
    return started, finish(started)


@pytest.fixture(scope="module")
def two(place, stopped):
    """The same command again, to the end."""
    started = start_two(place, "two", "--config.mesh.fsdp=4")
    outputs = finish(started)
    assert [process.returncode for process in started] == [0, 0], "\n\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def one(place):
    finished = run(*options(place, "one"), devices=8)
    assert finished.returncode == 0, finished.stdout
    return finished


def train_lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(place, stopped):
    started, outputs = stopped
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 128 + signal.SIGTERM, output
        assert "Traceback" not in output
    assert "stopped by SIGTERM; the state is saved" in outputs[0]


@pytest.mark.slow
def test_losses_and_weights_are_those_of_one_process(place, two, one):
    ours, theirs = train_lines(place / "two"), train_lines(place / "one")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for name in ("train/loss", "train/loss_x", "train/loss_s1"):
        np.testing.assert_allclose(
            [line[name] for line in ours], [line[name] for line in theirs], atol=1e-5, rtol=0
        )
    found, expected = (last_state(place / name, step=STEPS) for name in ("two", "one"))
    assert found.keys() == expected.keys()
    for path in (path for path in expected if not path.startswith("/opt_state")):
        leaf = expected[path]
        np.testing.assert_allclose(found[path], leaf, atol=1e-5, rtol=0, err_msg=path)


@pytest.mark.slow
def test_two_processes_share_a_bucket(place, two, monkeypatch):
    """Checkpoints of both, everything else of the first one; as in a folder that they share."""
    with gcs.emulator(monkeypatch) as bucket:
        monkeypatch.setenv("HOME", str(place / "home"))
        flags = [f"--workdir={bucket}/two", f"--config.data.directory={bucket}/data"]
        started = start_two(place, "", *flags, "--config.mesh.fsdp=4")
        outputs = finish(started)
        assert [process.returncode for process in started] == [0, 0], "\n\n".join(outputs)
        copy = buckets.fetch(f"{bucket}/two", lambda name: True)
    found, expected = (last_state(folder, step=STEPS) for folder in (copy, place / "two"))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert train_lines(copy)[-1]["train/loss"] == train_lines(place / "two")[-1]["train/loss"]
    assert (copy / "serving" / "SHA256SUMS").exists() and not (copy / "lock").exists()
    assert not LIBRARIES.sub("", outputs[1])


@pytest.mark.slow
def test_every_validation_image_counts_once(place, two, one):
    found, expected = (read.load(place / name).evaluations[-1] for name in ("two", "one"))
    assert found.image_iou.keys() == expected.image_iou.keys()
    assert list(found.image_iou) == ["photo_00", "photo_01", "photo_02"]
    matrices = {
        name: (found.confusion[name], expected.confusion[name]) for name in ("student", "ema")
    }
    matrices["pseudo"] = found.labels["pseudo"], expected.labels["pseudo"]
    for name, (ours, theirs) in matrices.items():
        np.testing.assert_array_equal(ours.sum(axis=1), theirs.sum(axis=1), err_msg=name)
        # After few steps, rounding decides the class of single pixels. Equal weights give equal counts
        # (tests/evaluation/test_processes.py).
        assert np.abs(ours - theirs).sum() <= theirs.sum() / 100, name
    assert "3 images" in two[0] and "3 images" in one.stdout


@pytest.mark.slow
def test_only_the_first_process_writes_and_prints(place, two):
    written = [
        {path for path in (place / f"written-{index}").read_text().splitlines()
         if path.startswith(str(place / "two")) and "/checkpoints" not in path}
        for index in range(2)
    ]  # fmt: skip
    assert any("metrics.jsonl" in path for path in written[0])
    assert not written[1]
    assert "finished after" in two[0] and "evaluation at step" in two[0]
    assert not LIBRARIES.sub("", two[1])
    sessions = read.load(place / "two").sessions
    assert [session["outcome"] for session in sessions] == ["stopped", "finished"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "--coordinator_address and --process_id must be given as well"),
        (
            ["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"],
            "--process_id = 2 is outside 0 … 1",
        ),
        (
            ["--coordinator_address=localhost", "--num_processes=1", "--process_id=0"],
            "'localhost' has no port; write HOST:PORT",
        ),
    ],
)
def test_flags_that_contradict_each_other(flags, message, monkeypatch):
    named = dict(flag.removeprefix("--").split("=") for flag in flags)
    numbers = {name: int(value) for name, value in named.items() if value.isdigit()}
    with pytest.raises(ValueError, match=message):
        distributed.start(**{**named, **numbers})


def test_a_missing_process_is_an_error():
    flags = ["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=1"]
    done = run("--config=configs/tiny.py", *flags, "--start_timeout=1")
    assert done.returncode == 2, done.stdout
    assert (
        "error: --coordinator_address = localhost:1: nothing listened there for 1 s" in done.stdout
    )


# The second process reaches the barrier late.
BARRIER = """
import pathlib, sys, time
from semivl_jax.train import distributed
address, index, done = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
distributed.start(coordinator_address=address, num_processes=2, process_id=index)
if index == 1:
    time.sleep(1)
    done.touch()
distributed.barrier("both")
print("done before:", done.exists())

# Then the first one prepares something, and the processes exchange whether that failed.
made, exchange = done.with_name("made"), distributed.multihost_utils.broadcast_one_to_all
def make():
    if index == 0:
        time.sleep(1)
        made.touch()
    return made.exists()
def exchange_and_print(value):
    print("made before an exchange:", made.exists())
    return exchange(value)
distributed.multihost_utils.broadcast_one_to_all = exchange_and_print
for _ in range(2):
    print("made:", distributed.main_first(make))
"""


def test_barrier_waits_longer_than_a_device_exchange(tmp_path):
    """An exchange between devices fails if a process is half a minute late; here it is one second."""
    address = free_address()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BARRIER, address, str(index), str(tmp_path / "done")],
            cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    for output in finish(started):
        made = ["made before an exchange: True", "made: True"]
        own = [line for line in output.splitlines() if line.startswith(("done", "made"))]
        assert own == ["done before: True", *made, *made]


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),  # a batch script, before srun
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        (
            {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b"},
            True,
        ),
    ],
)
def test_environments_with_several_processes(environment, several):
    assert distributed.expected(environment) is several
