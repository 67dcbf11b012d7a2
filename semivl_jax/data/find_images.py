"""Which files of a folder are photos: the one rule for training and prediction.

Folders are searched to the bottom and symbolic links are followed. What is hidden (begins with a dot) and
what systems and tools add is left out; files with other suffixes are counted, so that nobody misses them
without a word.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".avif", ".tga",
)  # fmt: skip
"""Suffixes of photos, in lower case."""

TOOL_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
     "__pycache__")
)  # fmt: skip
TOOL_FILES = frozenset(("Thumbs.db", "desktop.ini", "Icon\r"))


@dataclasses.dataclass(frozen=True)
class Found:
    """Files with a wanted suffix, sorted, and how many have another suffix, by suffix."""

    files: tuple[Path, ...]
    left_out: Counter[str]


def images_in(
    folder: Path, *, suffixes: Sequence[str] = IMAGE_SUFFIXES, without: Path | None = None
) -> Found:
    """The photos in a folder; nothing below `without` is one.

    Raises:
      ValueError: a link to a file that is not there, a folder that may not be read.
    """
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    entered: set[str] = set()
    skipped = None if without is None else os.path.realpath(without)
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in TOOL_FOLDERS)
        real = os.path.realpath(parent)
        if real in entered or real == skipped:  # links in a circle
            folders.clear()
            continue
        entered.add(real)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or name in TOOL_FILES:
                continue
            if suffix in suffixes:
                files.append(Path(parent, name))
            else:
                left_out[suffix or "no suffix"] += 1
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is a link to a file that is not there; restore or remove it")
    return Found(tuple(sorted(files)), left_out)


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise ValueError(
            f"{error.filename}: {error.strerror}; make the folder readable, or move it elsewhere"
        ) from error


def describe_left_out(left_out: Counter[str]) -> str:
    """A sentence about files that are no photos; empty where there are none."""
    if not left_out:
        return ""
    listed = ", ".join(f"{number} {suffix}" for suffix, number in left_out.most_common())
    return f"{left_out.total()} other files are left out: {listed}"
