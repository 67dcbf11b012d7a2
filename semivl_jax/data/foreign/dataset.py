"""What is read from the files of another tool: photos, how their masks are made, classes, and what was seen.

A mask is made when it is written: uint8 [h, w] label map, 255 = void, of the size that the annotations give.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from semivl_jax.data.dataset_info import IGNORE_INDEX

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

    def class_lines(self) -> list[str]:
        """The class list as text, with the concepts that describe classes."""
        concepts = self.definitions or tuple((name,) for name in self.names)
        return [
            name if words == (name,) else f"{name}: {', '.join(words)}"
            for name, words in zip(self.names, concepts, strict=True)
        ]


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
        others = [name for name in names if name.lower() != "background"]
        return tuple(others if self.rest == IGNORE_INDEX else ["background", *others])


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
