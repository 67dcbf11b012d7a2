"""Folders that save time, such as those below `~/.cache`: one that cannot be written costs no run."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path


@functools.cache
def warn_once(text: str) -> None:
    """Prints a warning, the same one only once per process."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder; empty if something can. A missing folder is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def warn(folder: Path, reason: str, key: str, consequence: str) -> None:
    """Warns that a cache, named by `key`, is not used."""
    warn_once(
        f"{folder} cannot be written ({reason}), so {consequence}; name another folder with {key}"
    )


def temporary_folder() -> Path:
    """A folder of this user below the system's temporary one, the same for all processes."""
    folder = Path(tempfile.gettempdir()) / f"semivl_jax-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder if folder.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp())
