"""Images to segment, found by path, folder and pattern; and the folder of the results.

In: paths, folders and patterns as a user writes them. Out: files below one folder, each written whole or not
at all; their names are those of the images, made unique where two would be the same.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semivl_jax import utils
from semivl_jax.data.find_images import describe_left_out, images_in

if TYPE_CHECKING:
    from semivl_jax.inference.segmenter import Segmentation

EXISTING = ("refuse", "skip", "replace")
_JPEG_SIDE = 65500
"""Longest side that a JPEG can have, in pixels."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image and the name of its results, without suffix, below the folders of the results."""

    path: Path
    name: str


def find_images(patterns: Sequence[str], *, without: Path) -> tuple[list[ImageFile], Counter[str]]:
    """Images by paths, folders and patterns, each once, in order; and by suffix how many files are none.

    Files that are named or match a pattern are taken whatever their suffix; folders are searched as for
    training (`data.find_images`). Nothing below `without`, where results go, is an image. The name is the
    path below the folder or pattern: without suffix, with it where two images differ in nothing else, or
    numbered.

    Raises:
      ValueError: a path that is not there, or a folder or pattern that holds no image.
    """
    images: dict[Path, tuple[Path, Path]] = {}  # two patterns may find the same image
    left_out: Counter[str] = Counter()
    for pattern in patterns:
        found = list(_find(os.path.expanduser(pattern), without.resolve(), left_out))
        if not found:
            others = f" ({describe_left_out(left_out)})" if left_out else ""
            raise ValueError(
                f"--images {pattern} finds no image{others}; correct the path or pattern"
            )
        for path, name in found:
            images.setdefault(path.resolve(), (path, name))
    unique = _unique_names([name for _, name in images.values()])
    paths = (path for path, _ in images.values())
    return [ImageFile(path, name) for path, name in zip(paths, unique, strict=True)], left_out


def _find(pattern: str, without: Path, left_out: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """(path, name with suffix) of every image of a pattern; counts other files in `left_out`."""

    def inside(folder: Path, base: Path) -> Iterator[tuple[Path, Path]]:
        found = images_in(folder, without=without)
        left_out.update(found.left_out)
        yield from ((file, file.relative_to(base)) for file in found.files)

    path = Path(pattern)
    if path.is_file():
        yield path, Path(path.name)
    elif path.is_dir():
        yield from inside(path, path)
    elif not glob.has_magic(pattern):
        raise ValueError(f"--images {pattern}: no such file or folder; correct the path")
    else:
        fixed = path
        while glob.has_magic(str(fixed)):
            fixed = fixed.parent
        for match in map(Path, sorted(glob.glob(pattern, recursive=True))):
            if match.is_dir():
                yield from inside(match, fixed)
            elif without not in match.resolve().parents:
                yield match, match.relative_to(fixed)


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Names that differ in more than their case, which some file systems ignore."""
    plain = Counter(str(path.with_suffix("")).lower() for path in paths)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name = str(path.with_suffix(""))
        if plain[name.lower()] > 1:
            name = str(path)
        unique, number = name, 2
        while unique.lower() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.lower())
        names.append(unique)
    return names


class ResultFolder:
    """masks/, overlays/, scores/ and classes.json below `root`; `scores`: keep the scores, too."""

    def __init__(self, root: Path, *, scores: bool) -> None:
        self.root, self._with_scores = root, scores

    def claim(
        self,
        images: Sequence[ImageFile],
        names: Sequence[str],
        palette: np.ndarray,
        *,
        existing: str,
    ) -> list[ImageFile]:
        """The images that are to be segmented; writes `classes.json`.

        `existing` is what to do about results that are there: "refuse" to begin, "skip" their images, or
        "replace" them.

        Raises:
          ValueError: results are there and may not be touched, they are about other classes or images, or
            masks are there that no prediction made.
        """
        done = {image for image in images if self._is_complete(image)}
        path = self.root / "classes.json"
        stored = _stored(path)
        masks = (self._path(image, "masks", ".png") for image in images)
        own = None if path.exists() else next((mask for mask in masks if mask.exists()), None)
        if own is not None:
            raise ValueError(
                f"{own} may be a mask of yours, because {self.root} holds no predictions (no {path.name}); "
                "choose another --out"
            )
        if existing == "refuse" and (done or path.exists()):
            raise ValueError(
                f"{self.root} holds predictions already ({len(done)} of these {len(images)} images); "
                "choose another --out, or --existing=skip or replace"
            )
        if existing == "skip" and path.exists() and stored.get("names") != list(names):
            raise ValueError(
                f"{path} is about other classes, so its masks mean something else; choose another --out, "
                "or --existing=replace"
            )
        sources = stored.get("images", {})
        for image in done if existing == "skip" else ():
            before = sources.get(image.name, str(image.path.resolve()))
            if before != str(image.path.resolve()):
                mask = self._path(image, "masks", ".png")
                raise ValueError(
                    f"{mask} is about {before}, not {image.path}; choose another --out"
                )
        facts = {
            "names": list(names),
            "palette": np.asarray(palette).tolist(),
            "images": sources | {image.name: str(image.path.resolve()) for image in images},
        }
        utils.write_text(path, json.dumps(facts, indent=1))
        return [image for image in images if existing != "skip" or image not in done]

    def write(self, image: ImageFile, found: Segmentation) -> None:
        """Writes mask, overlay and scores; the mask last, as the mark of a complete result."""
        overlay = found.overlay().convert("RGB")
        overlay.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
        with utils.atomic_write(self._path(image, "overlays", ".jpg")) as path:
            overlay.save(path, format="JPEG", quality=92)
        if self._with_scores:
            path = self._path(image, "scores", ".npz")
            # Given a path, NumPy would append its suffix.
            with utils.atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(file, scores=found.scores, names=np.array(found.names))
        with utils.atomic_write(self._path(image, "masks", ".png")) as path:
            found.save(path)

    def _is_complete(self, image: ImageFile) -> bool:
        wanted = [("masks", ".png"), ("overlays", ".jpg")]
        wanted += [("scores", ".npz")] * self._with_scores
        return all(self._path(image, *part).exists() for part in wanted)

    def _path(self, image: ImageFile, kind: str, suffix: str) -> Path:
        return self.root / kind / f"{image.name}{suffix}"


def _stored(path: Path) -> dict[str, Any]:
    """What `classes.json` holds; empty where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
