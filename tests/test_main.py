"""The command line beyond what tests/test_bad_input.py and tests/test_resume.py run as a user does."""

import errno
from pathlib import Path

import pytest

from configs import demo
from semivl_jax import main, utils


@pytest.mark.parametrize(
    ("flag", "folder"),
    [
        ("configs/demo.py", "runs/demo"),
        ("configs/folder.py:/data/my photos", "runs/folder-data-my-photos"),
        ("configs/folder.py:photos,tower=demo", "runs/folder-photos-tower=demo"),
    ],
)
def test_default_workdir_is_named_after_the_configuration(flag, folder):
    assert utils.default_workdir(flag) == Path(folder)


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("--config.a=1 --config=f.py --workdir=x", "--config=f.py --config.a=1 --workdir=x"),
        ("--workdir=x --config.a=1 --config f.py", "--config f.py --workdir=x --config.a=1"),
        ("--config=f.py --config.a=1", "--config=f.py --config.a=1"),
        ("--help", "--help"),
    ],
)
def test_the_configuration_may_follow_its_fields(given, ordered):
    assert main._configuration_first(given.split()) == ordered.split()


@pytest.mark.parametrize("joined", [True, False])
def test_fields_of_the_method_that_is_named_can_be_set(joined):
    """Before the name or after it; values of the configuration file stay."""
    name = ["--config.method.name=cw_bass"] if joined else ["--config.method.name", "cw_bass"]
    parse = main._with_fields_of_method(lambda path: demo.get_config(), ["main", *name])
    method = parse("configs/demo.py").method
    assert method.threshold == "floor" and method.name == "semivl"
    assert method.ema_decay == 0.98 != demo.default_config().method.ema_decay


def test_errors_are_one_line():
    error = ValueError("Traceback (most recent call last):\n  x\nAttributeError: no\n  such key")
    assert main._sentence(error) == "no such key"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/a"),
            3,
            "error: /runs/a: No space left on",
        ),
        (
            RuntimeError("write: Read-only file system"),
            3,
            "error: a file: Read-only file system; mount",
        ),
        (
            ValueError("photo.png cannot be read: Permission denied"),
            2,
            "error: photo.png cannot be read",
        ),
    ],
)
def test_exit_codes(error, code, message, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(main, "_run", fail)
    if not main.flags.FLAGS.is_parsed():
        main.flags.FLAGS.mark_as_parsed()
    assert main.main(["main"]) == code
    assert message in capsys.readouterr().err
