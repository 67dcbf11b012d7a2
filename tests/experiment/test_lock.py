"""One writer per working directory: the second one is refused, a dead one does not count."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from semivl_jax.experiment import lock
from tests.command import ROOT

HOLD = """
import pathlib, sys, time
from semivl_jax.experiment import lock
with lock.one_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(workdir):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_writer_is_refused_until_the_first_one_ends_or_is_killed(tmp_path):
    workdir = tmp_path / "run"
    with holder(workdir) as process:
        named = f"process {process.pid} on {socket.gethostname()}"
        message = rf"run is in use by {named} since 20\S+; wait for it"
        for _ in range(2):
            with pytest.raises(ValueError, match=message), lock.one_writer(workdir):
                pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (workdir / lock.FILE).exists()
        with lock.one_writer(workdir):
            (workdir / "config.json").touch()
            held = json.loads((workdir / lock.FILE).read_text())
            assert held["process"] == os.getpid()
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_a_run_that_fails_at_once_leaves_no_trace(tmp_path):
    with pytest.raises(KeyError), lock.one_writer(tmp_path / "run"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_many_writers_at_once_are_one_at_a_time(tmp_path):
    (tmp_path / "config.json").touch()
    inside, most, entered = [], [], []

    def write():
        for _ in range(200):
            with contextlib.suppress(ValueError), lock.one_writer(tmp_path):
                inside.append(1)
                most.append(len(inside))
                entered.append(1)
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) >= 200 and max(most) == 1


def test_another_host_that_died_is_named(tmp_path, capsys):
    (tmp_path / "config.json").touch()
    text = {"host": "node7", "process": 5, "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / lock.FILE).write_text(json.dumps(text))
    with lock.one_writer(tmp_path):
        pass
    printed = capsys.readouterr().out
    assert "was in use by process 5 on node7 since 2026-01-01T00:00:00+00:00" in printed
    (tmp_path / lock.FILE).write_text('{"ho')
    with lock.one_writer(tmp_path):
        pass


def test_a_file_system_without_locks_goes_by_the_text(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    here = {"host": socket.gethostname(), "since": "now"}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / lock.FILE).write_text(json.dumps({**here, "process": gone.pid}))
    with lock.one_writer(tmp_path):
        (tmp_path / "config.json").touch()
    for other in ({**here, "process": os.getppid()}, {**here, "host": "node7", "process": 5}):
        (tmp_path / lock.FILE).write_text(json.dumps(other))
        with (
            pytest.raises(
                ValueError, match=r"is in use by process .* if it no longer runs, delete"
            ),
            lock.one_writer(tmp_path),
        ):
            pass
