"""Which Python source this process runs, written down so that a later one can tell whether it runs the same.

`main` imports this module first: a file that was changed after that moment may not be what was imported.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

Manifest = dict[str, tuple[str, str]]
"""File and SHA-256 of its content by the name of the module."""

_STARTED = time.time()
_SLACK_S = 1.0  # file systems round times, and other machines' clocks are not quite ours


def loaded() -> Manifest | None:
    """All modules imported so far that come from Python source (27 MB take a tenth of a second).

    None where that cannot be told: a source is not a file, or younger than this process.
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


def difference(manifest: Mapping[str, tuple[str, str]]) -> str:
    """The first recorded file that is not as it was, or is not where its module comes from; empty if none."""
    for name, (file, digest) in manifest.items():
        path = _source(sys.modules.get(name)) or Path(file)
        try:
            if str(path) != file or _digest(path) != digest:
                return str(path)
        except OSError:
            return str(path)
    return ""


def _source(module: object) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(".py") else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
