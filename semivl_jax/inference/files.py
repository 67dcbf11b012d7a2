"""Which images a prediction is about, and where its results go.

In: paths, folders and patterns as a user writes them. Out: files below one folder, each written whole under
its name or not at all; the names are those of the images, made unique where two would be the same.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from semivl_jax.data.dataset_info import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from semivl_jax.inference.segmenter import Segmentation

EXISTING = ("refuse", "skip", "replace")
_JPEG_SIDE = 65500


@dataclasses.dataclass(frozen=True)
class Found:
    """An image and its name below the folder or pattern that it was found by, with its suffix."""

    path: Path
    name: Path


@dataclasses.dataclass(frozen=True)
class Target:
    """An image and the name of its results, without suffix."""

    image: Path
    name: str


def find_images(patterns: Sequence[str], *, without: Path) -> list[Found]:
    """Images by paths, folders (searched to the bottom) and patterns, each once, in order.

    Files that are named or match a pattern are taken whatever their suffix; folders are searched for
    `catalog.IMAGE_SUFFIXES`. Nothing below `without`, where results go, is an image.

    Raises:
      ValueError: a path that is not there, or a folder or pattern that holds no image.
    """
    found: dict[Path, Found] = {}
    for pattern in patterns:
        here = list(_find(os.path.expanduser(pattern), without.resolve()))
        if not here:
            raise ValueError(f"--images {pattern} finds no image; correct the path or pattern")
        for image in here:
            found.setdefault(image.path.resolve(), image)
    return list(found.values())


def _find(pattern: str, without: Path) -> list[Found]:
    path = Path(pattern)
    if path.is_file():
        return [Found(path, Path(path.name))]
    if path.is_dir():
        return _inside(path, path, without)
    if not glob.has_magic(pattern):
        raise ValueError(f"--images {pattern}: no such file or folder; correct the path")
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    images = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.is_dir():
            images += _inside(path, fixed, without)
        elif without not in path.resolve().parents:
            images.append(Found(path, path.relative_to(fixed)))
    return images


def _inside(folder: Path, base: Path, without: Path) -> list[Found]:
    return [
        Found(path, path.relative_to(base))
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and without not in path.resolve().parents
        and path.is_file()
    ]


def unique_names(images: Sequence[Found]) -> list[str]:
    """A name per image: without suffix, with it where two images differ in nothing else, or numbered.

    Case does not count, because on some disks it makes no difference.
    """
    plain = Counter(str(image.name.with_suffix("")).lower() for image in images)
    names: list[str] = []
    taken: set[str] = set()
    for image in images:
        name = str(image.name.with_suffix(""))
        if plain[name.lower()] > 1:
            name = str(image.name)
        unique, number = name, 2
        while unique.lower() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.lower())
        names.append(unique)
    return names


class Outputs:
    """The folder of the results."""

    def __init__(self, root: Path, *, scores: bool) -> None:
        """`scores`: keep the scores, too."""
        self.root, self._with_scores = root, scores

    def claim(
        self,
        images: Sequence[Found],
        names: Sequence[str],
        palette: np.ndarray,
        *,
        existing: str,
    ) -> list[Target]:
        """The images that are to be segmented; writes `classes.json`.

        `existing` is what to do about results that are there: "refuse" to begin, "skip" their images, or
        "replace" them.

        Raises:
          ValueError: results are there and may not be touched, or they are about other classes.
        """
        facts = {"names": list(names), "palette": np.asarray(palette).tolist()}
        targets = [
            Target(image.path, name)
            for image, name in zip(images, unique_names(images), strict=True)
        ]
        there = [target for target in targets if self._complete(target)]
        path = self.root / "classes.json"
        if existing == "refuse" and (there or path.exists()):
            raise ValueError(
                f"{self.root} holds predictions already ({len(there)} of these {len(targets)} images); "
                "choose another --out, or --existing=skip or replace"
            )
        if existing == "skip":
            if path.exists() and _names(path) != facts["names"]:
                raise ValueError(
                    f"{path} is about other classes, so its masks mean something else; choose another --out, "
                    "or --existing=replace"
                )
            done = {target.name for target in there}
            targets = [target for target in targets if target.name not in done]
        _whole(path, lambda file: file.write(json.dumps(facts, indent=1).encode()))
        return targets

    def write(self, target: Target, found: Segmentation) -> None:
        """Writes mask, overlay and scores; the mask last, because it says that the rest is there."""
        overlay = found.overlay().convert("RGB")
        overlay.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
        _whole(self._path(target, "overlays", ".jpg"),
               lambda file: overlay.save(file, format="JPEG", quality=92))  # fmt: skip
        if self._with_scores:
            _whole(self._path(target, "scores", ".npz"),
                   lambda file: np.savez(file, scores=found.scores, names=np.array(found.names)))  # fmt: skip
        _whole(self._path(target, "masks", ".png"), lambda file: found.mask().save(file, "PNG"))

    def _complete(self, target: Target) -> bool:
        wanted = [("masks", ".png"), ("overlays", ".jpg")]
        wanted += [("scores", ".npz")] * self._with_scores
        return all(self._path(target, *part).exists() for part in wanted)

    def _path(self, target: Target, kind: str, suffix: str) -> Path:
        return self.root / kind / f"{target.name}{suffix}"


def _names(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf8"))["names"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file under its name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            write(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
