"""The photos that annotation files name.

In: a folder, and names as annotation files give them: of a file, or a path, also of another machine. Out: the
files, and where they lie.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from semivl_jax.data.find_images import images_in


class PhotoFiles:
    """The photos below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = images_in(root).files
        self._by_name: defaultdict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            self._by_name[path.name].append(path)

    def find(self, source: Path, name: str, *, part: str = "") -> Path:
        """The photo that the file `source` calls `name`; `part` is a folder of images/ to look in first.

        The name is a path from the folder of `source`, from the root, or from images/ in one of them, or else
        the photo below the root whose path ends like the name does, in as many folders as possible.

        Raises:
          ValueError: no such photo, or several.
        """
        name = name.replace("\\", "/")
        folders = [source.parent / "images" / part] if part else []
        for base in (source.parent, self.root):
            folders += [base, base / "images"]
        for folder in folders:
            path = Path(os.path.normpath(folder / name))
            if path.is_file():
                return path
        lengths = {path: _common_end(path, Path(name)) for path in self._by_name[Path(name).name]}
        longest = [path for path, length in lengths.items() if length == max(lengths.values())]
        if len(longest) == 1:
            return longest[0]
        there = f"{len(longest)} times below" if longest else "not below"
        raise ValueError(
            f"{source} names the photo {name!r}, which is {there} {self.root}; correct the path there"
        )

    def place(self, path: Path) -> Path:
        """A photo's path below the root, or the file's name if it lies elsewhere."""
        relative = Path(os.path.relpath(path, self.root))
        return Path(path.name) if ".." in relative.parts else relative


def _common_end(one: Path, other: Path) -> int:
    """How many of the last parts two paths have in common."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), len(other.parts))
