"""Lists of images: text files with one image per line.

A line is an id, the file name or the path of an image, or, as in published lists, the path of an image and
that of its mask. A line that names no image is an error, and so is one that only resembles a name.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from pathlib import Path, PurePosixPath

from semivl_jax.data.find_images import IMAGE_SUFFIXES
from semivl_jax.data.text_files import read_lines

_ROOTS = ("images", "train", "training", "train2017", "JPEGImages", "leftImg8bit")
"""Folders in front of an id in published lists and in paths of this project's layout."""
_CITYSCAPES = "_leftImg8bit"

_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_PAIR = re.compile(rf"(.+?(?:{_SUFFIX}))[\s,;]+(.+(?:{_SUFFIX}))", re.IGNORECASE)


def read_id_list(path: Path, ids: Iterable[str], *, key: str) -> list[str]:
    """Ids of the images that a list names, in its order; `key` names the list in messages.

    Raises:
      ValueError: a line that names none of `ids`, or one that an earlier line names, with its number; no
        line at all.
    """
    known = dict.fromkeys(ids)
    found: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, read_lines(path)), start=1):
        if not line:
            continue
        name = find_id(line, known)
        if name is None:
            raise ValueError(
                f"{key} line {number} names {line!r}, which is no training image "
                f"(ids look like {next(iter(known), '')!r}); correct the line or take it out"
            )
        if name in found:
            raise ValueError(
                f"{key} line {number} names {name!r} twice, as line {found[name]} does; take one line out"
            )
        found[name] = number
    if not found:
        raise ValueError(f"{key} names no image; write one id per line")
    return list(found)


def find_id(entry: str, ids: Container[str]) -> str | None:
    """The id that a line means, or None."""
    if entry in ids:
        return entry
    pair = _PAIR.fullmatch(entry)
    if pair:
        image, mask = (PurePosixPath(part.replace("\\", "/")) for part in pair.groups())
        if not mask.stem.startswith(image.stem.removesuffix(_CITYSCAPES)):
            return None
        entry = pair[1]
    for text in (entry, entry.replace("\\", "/")):
        path = PurePosixPath(text)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            name = _without_folders(path.with_suffix(""), ids)
            if name is not None:
                return name
        name = _without_folders(path, ids)
        if name is not None:
            return name
    return None


def _without_folders(path: PurePosixPath, ids: Container[str]) -> str | None:
    """The path if it is an id, or what follows a known folder in it."""
    if path.name.endswith(_CITYSCAPES):
        stem = path.name.removesuffix(_CITYSCAPES)
        if stem in ids:
            return stem
    for start in range(len(path.parts)):
        name = PurePosixPath(*path.parts[start:]).as_posix()
        known = not start or path.parts[start - 1] in _ROOTS or path.parts[start] == "unlabelled"
        if known and name in ids:
            return name
    return None
