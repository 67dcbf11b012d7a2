"""What is read from the files of another tool: photos, how their masks are made, classes, and what was seen.

A mask is made when it is written: uint8 [h, w] label map, 255 = void, of the size that the annotations give.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semivl_jax.data.class_files import parse_classes
from semivl_jax.data.dataset_info import IGNORE_INDEX
from semivl_jax.data.text_files import text_lines

BACKGROUND = ("background", "_background_")
"""Names of what is no object, in lower case; the second is LabelMe's."""

PARTS = {
    "train": "train", "training": "train", "train2017": "train",
    "val": "val", "valid": "val", "validation": "val", "val2017": "val", "dev": "val",
    "test": "test", "testing": "test", "test2017": "test",
}  # fmt: skip
"""Names of folders and files, in lower case, that say the part."""
PHOTO_FOLDERS = (
    "jpegimages", "images", "image", "imgs", "img", "photos", "leftimg8bit", "rgb", "img_dir", "pictures",
)  # fmt: skip
"""Names of folders of photos, in lower case."""


@dataclasses.dataclass(frozen=True)
class ForeignPhoto:
    """A photo, its id, its part ("train", "val", "test" or "": not said), and its mask (None: unlabelled).

    `where` names the annotation in messages.
    """

    id: str
    path: Path
    part: str = ""
    mask: Callable[[], np.ndarray] | None = None
    where: str = ""


@dataclasses.dataclass(frozen=True)
class ForeignDataset:
    """Photos and classes of a folder; `notes` are sentences about what was found and how it was read."""

    format: str
    names: tuple[str, ...]
    photos: tuple[ForeignPhoto, ...]
    notes: tuple[str, ...] = ()
    definitions: tuple[tuple[str, ...], ...] = ()

    def class_lines(self, where: str) -> list[str]:
        """Lines of a class list, with the concepts that describe classes; `where` names the data in messages.

        Raises:
          ValueError: a name that would be read as something else.
        """
        concepts = self.definitions or tuple((name,) for name in self.names)
        lines = [
            name if words == (name,) else f"{name}: {', '.join(words)}"
            for name, words in zip(self.names, concepts, strict=True)
        ]
        for name, line in zip(self.names, lines, strict=True):
            _check_lines([line], [name], where)
        _check_lines(lines, self.names, where)
        return lines


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options of a conversion.

    classes       file with the classes; None: the one in the folder
    rest          label value of what lies outside all outlines: 0 (background) or 255 (ignored)
    mask_suffix   end of the masks' names where photos have several masks; "": found out
    """

    classes: Path | None = None
    rest: int = 0
    mask_suffix: str = ""

    def names_with_rest(self, names: Iterable[str]) -> tuple[str, ...]:
        """Classes in the order of their values: the background first, if it is one."""
        others = [name for name in names if name.lower() not in BACKGROUND]
        return tuple(others if self.rest == IGNORE_INDEX else ["background", *others])


def _check_lines(lines: Sequence[str], names: Sequence[str], where: str) -> None:
    """ValueError if the lines of a class list are not read as these names."""
    wanted = [unicodedata.normalize("NFC", name) for name in names]
    try:
        text = text_lines("\n".join(lines), where="classes.txt")
        found = parse_classes(text, where="classes.txt").names
    except ValueError as error:
        raise ValueError(_cannot_hold(where, names[0], str(error))) from error
    if not found:
        raise ValueError(_cannot_hold(where, names[0], "it would be read as a comment"))
    for name, one, other in zip(names, wanted, found, strict=True):
        if one != other:
            raise ValueError(_cannot_hold(where, name, f"it would be read as {other!r}"))


def _cannot_hold(where: str, name: str, reason: str) -> str:
    return (
        f"{where} has the class {name!r}, which classes.txt cannot hold ({reason}); rename it in the "
        "annotations or the class list"
    )


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turns errors about fields that are missing or of a wrong kind into a ValueError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{file} lacks a field or has one of a wrong kind ({error!r}); export it again"
        ) from error


def number(value: Any, what: str) -> float:
    """A finite number of an annotation; ValueError with `what` it is if it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{what} is {value!r}, which is no number; correct it")
    return found


def part_of(folder: Path, name: str = "") -> str:
    """The part that the folders of a relative path, the innermost first, or else a file's name say."""
    for text in (*reversed(folder.parts), name):
        words = re.split(r"[_\-. ]", re.sub(r"annot$", "", text.lower()))
        found = [PARTS[word] for word in (text.lower(), words[0], words[-1]) if word in PARTS]
        if found:
            return found[0]
    return ""


def id_of(path: Path) -> str:
    """Id of a photo at a relative path: without suffix and folders that only say the part or what it is."""
    dropped = PARTS.keys() | set(PHOTO_FOLDERS)
    folders = [name for name in path.parent.parts if name.lower() not in dropped]
    return "/".join([*folders, path.stem])


def unlabelled(
    root: Path, files: Iterable[Path], annotated: Iterable[ForeignPhoto]
) -> list[ForeignPhoto]:
    """The files that are not annotated."""
    known = {photo.path.resolve() for photo in annotated}
    relative = {path: path.relative_to(root) for path in files if path.resolve() not in known}
    return [
        ForeignPhoto(id_of(name), path, part_of(name.parent)) for path, name in relative.items()
    ]


def counted(counts: Counter[str]) -> str:
    """ "3 a, 1 b"."""
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())
