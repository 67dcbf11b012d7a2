"""Progress of long work: bars on terminals only, lines elsewhere, neither colours nor control characters."""

import contextlib
import os
import pty
import subprocess
import sys
import termios

import pytest

from semivl_jax import utils

WORK = """
import time
from semivl_jax import utils
utils.LINE_INTERVAL = 0.05
with utils.Progress("counting", total=4, unit="sheep") as shown:
    for _ in range(4):
        time.sleep(0.06)
        shown.update()
print("result")
"""


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [100.0]
    monkeypatch.setattr(utils.time, "monotonic", lambda: now[0])
    return now


def said_on_a_terminal(**environment: str) -> bytes:
    """What the standard error stream of WORK gets when it is a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**clean, "TERM": "xterm", **environment},
        check=True,
    )
    os.set_blocking(ours, False)
    said = b""
    with contextlib.suppress(BlockingIOError):  # all is read
        while True:
            said += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    assert done.stdout == b"result\n"
    return said


def test_a_terminal_gets_a_bar():
    said = said_on_a_terminal()
    assert b"counting: 100%" in said and b"4/4" in said and b"\r" in said.replace(b"\r\n", b"")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_none_gets_lines(environment):
    said = said_on_a_terminal(**environment)
    assert b"counting: 4 of 4 sheep, " in said
    assert b"\r" not in said.replace(b"\r\n", b"") and b"\x1b" not in said


def test_a_file_gets_a_line_every_half_minute(clock, capfd):
    with utils.Progress("evaluating", total=1000, unit="images") as shown:
        for second in range(1, 70):
            clock[0] = 100.0 + second
            shown.update(2)
    error = capfd.readouterr().err
    # 60 images after 30 s, 2 per second, 940 left.
    assert error.splitlines() == [
        "evaluating: 60 of 1,000 images, 2.0/s, 7.8 min left",
        "evaluating: 120 of 1,000 images, 2.0/s, 7.3 min left",
    ]


def test_bytes_have_their_units_and_what_was_there_before_is_not_counted_as_speed(clock, capfd):
    with utils.Progress("a.tar", total=4_000_000_000, unit="B", initial=10**9) as shown:
        clock[0] = 130.0
        shown.update(600_000_000)
    assert capfd.readouterr().err == "a.tar: 1.60GB of 4.00GB, 20.0MB/s, 2.0 min left\n"


def test_short_work_and_other_processes_say_nothing(clock, capfd):
    with utils.Progress("short", total=3, unit="images") as shown:
        clock[0] = 101.0
        shown.update(3)
    with utils.Progress("second process", total=None, unit="images", show=False) as shown:
        clock[0] = 300.0
        shown.update()
    assert capfd.readouterr().err == ""
