"""The command line beyond what tests/test_bad_input.py and tests/test_resume.py run as a user does."""

from pathlib import Path

import pytest

from semivl_jax import main


@pytest.mark.parametrize(
    ("flag", "folder"),
    [
        ("configs/demo.py", "runs/demo"),
        ("configs/folder.py:/data/my photos", "runs/folder-data-my-photos"),
        ("configs/folder.py:photos,tower=demo", "runs/folder-photos-tower=demo"),
    ],
)
def test_default_workdir_is_named_after_the_configuration(flag, folder):
    assert main.default_workdir(flag) == Path(folder)


def test_errors_are_one_line():
    error = ValueError("Traceback (most recent call last):\n  x\nAttributeError: no\n  such key")
    assert main._sentence(error) == "no such key"
