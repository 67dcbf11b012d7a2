"""Progress of long work: bars on terminals only, lines elsewhere, neither colours nor control characters."""

import contextlib
import errno
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


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            "No space left on device; free some space there and repeat the same command",
        ),
        (errno.EACCES, "Permission denied; give this user the permission"),
        (errno.EROFS, "Read-only file system; mount"),
        (errno.EDQUOT, "Disk quota exceeded; free"),
    ],
)
@pytest.mark.parametrize("write", [utils.atomic_write, utils.replace_folder])
def test_what_the_system_refuses_is_one_sentence_and_exit_code_3(
    tmp_path, number, message, write, capsys
):
    path = tmp_path / "kept"

    def command():
        with write(path):
            raise OSError(
                number, os.strerror(number)
            )  # as of a write to an open file: without its name

    assert utils.run_command(command) == 3
    assert f"error: {path}: {message}" in capsys.readouterr().err
    assert not path.exists()


def test_replacing_a_folder_keeps_what_others_named(tmp_path):
    for name in ("photos", "photos.old", "photos.tmp"):
        (tmp_path / name).mkdir()
    with utils.replace_folder(tmp_path / "photos") as new:
        (new / "a").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "photos.old", "photos.tmp"]
    assert (tmp_path / "photos/a").exists()


def test_a_kill_between_two_renames_loses_no_folder(tmp_path):
    (tmp_path / ".photos.semivl_jax.old").mkdir()
    (tmp_path / ".photos.semivl_jax.old/a").touch()
    with pytest.raises(KeyError), utils.replace_folder(tmp_path / "photos"):
        raise KeyError
    assert (tmp_path / "photos/a").exists()


def test_names_as_long_as_a_file_system_allows_can_be_written(tmp_path):
    utils.write_text(tmp_path / ("a" * 255), "text")
    assert (tmp_path / ("a" * 255)).read_text() == "text"


def test_a_path_of_an_unknown_user_is_one_sentence():
    with pytest.raises(ValueError, match=r"'~nobody-here/a' begins with the name of a user"):
        utils.user_path("~nobody-here/a")


def test_other_errors_stay_what_they_are(tmp_path, capsys):
    def command():
        with utils.atomic_write(tmp_path / "kept"):
            raise FileNotFoundError(errno.ENOENT, "No such file", "photo.png")

    assert utils.run_command(command) == 2
    assert "photo.png" in capsys.readouterr().err


def test_libraries_hide_the_number_of_an_error():
    error = ValueError(
        "RESOURCE_EXHAUSTED: Failed to write: [OS error 28: No space left on device]"
    )
    assert str(utils.fault_in(error, "checkpoints")).startswith("checkpoints: No space left on")
    assert utils.fault_in(ValueError("dimensions do not match"), "checkpoints") is None
