"""Which Python source this process runs, written down so that a later one can tell whether it runs the same.

`main` imports this module first: a file that was changed after that moment may not be what was imported.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

Manifest = dict[str, tuple[str, str]]
"""File and SHA-256 of its content by the name of the module."""

_STARTED = time.time()
_SLACK_S = 1.0  # file systems round times, and other machines' clocks are not quite ours


def loaded() -> Manifest | None:
    """All modules imported so far that come from Python source (27 MB take a tenth of a second).

    None where that cannot be told: a source is not there any more, or younger than this process.
    """
    manifest = {}
    for name, module in sorted(sys.modules.items()):
        path = _source(module)
        if path is None:
            continue
        try:
            if path.stat().st_mtime > _STARTED - _SLACK_S:
                return None
            manifest[name] = (str(path), _digest(path))
        except OSError:
            return None
    return manifest


def changed(manifest: Manifest) -> str:
    """The first recorded file whose content is another one now; empty if there is none."""
    for file, digest in manifest.values():
        try:
            if _digest(Path(file)) != digest:
                return file
        except OSError:
            return file
    return ""


def moved(manifest: Manifest) -> str:
    """The first file of an imported module that was recorded with another one; empty if there is none."""
    for name, (file, _) in manifest.items():
        path = _source(sys.modules.get(name))
        if path is not None and str(path) != file:
            return str(path)
    return ""


def _source(module: object) -> Path | None:
    """None for what is compiled or built in, and what was made in memory, which may name a relative file."""
    file = getattr(module, "__file__", None)
    path = Path(file) if isinstance(file, str) and file.endswith(".py") else None
    return path if path is not None and path.is_absolute() else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
