"""COCO's instance annotations: one JSON per part, with outlines or run lengths.

Values are 0 for the background and 1, 2, … for the categories in the order of their numbers. Objects are
drawn from large to small, so that a small one stays visible on a large one.
"""

from __future__ import annotations

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semivl_jax.data.dataset_info import IGNORE_INDEX
from semivl_jax.data.foreign.dataset import (
    BACKGROUND,
    ForeignDataset,
    ForeignPhoto,
    Reading,
    id_of,
    naming,
    number,
    part_of,
    unlabelled,
)
from semivl_jax.data.foreign.drawing import Canvas, draw_segmentation
from semivl_jax.data.foreign.photo_files import PhotoFiles

_REST = {0: "background", IGNORE_INDEX: "ignored"}


def is_coco(content: Any) -> bool:
    """Whether a JSON file holds annotations in this format."""
    return (
        isinstance(content, Mapping) and {"images", "annotations", "categories"} <= content.keys()
    )


def read(root: Path, files: Sequence[Path], reading: Reading) -> ForeignDataset:
    """The photos of annotation files.

    Raises:
      ValueError: files whose categories differ, annotations without outlines or of no image or category, a
        photo that is not there or not unique.
    """
    contents = {path: json.loads(path.read_text(encoding="utf-8-sig")) for path in files}
    categories, dropped = _categories(contents)
    files_below = PhotoFiles(root)
    photos, without, empty = _photos(files_below, contents, _values(categories, reading), reading)
    notes = [f"annotations: {', '.join(str(path.relative_to(root)) for path in files)}"]
    if empty:
        notes.append(f"{empty} photos have no object, so all of them is {_REST[reading.rest]}")
    if dropped:
        notes.append(f"left out: category {', '.join(dropped)}, which nothing belongs to")
    if without:
        notes.append(f"left out: {without} annotations without an outline")
    more = unlabelled(root, files_below.files, photos)
    names = reading.names_with_rest(categories.values())
    return ForeignDataset("coco", names, (*photos, *more), tuple(notes))


def _categories(contents: Mapping[Path, Any]) -> tuple[dict[int, str], list[str]]:
    """{number: name} of all files, sorted, and Roboflow's category 0, which only groups the others."""
    found: dict[int, str] = {}
    for path, content in contents.items():
        with naming(path):
            for category in content["categories"]:
                value, name = category["id"], " ".join(str(category["name"]).split())
                if found.setdefault(value, name) != name:
                    raise ValueError(
                        f"{path} calls the category {value} {name!r}, it was {found[value]!r} before; "
                        "convert files with other categories one by one"
                    )
    used = set()
    for path, content in contents.items():
        with naming(path):
            _check_references(path, content, found)
            used |= {entry["category_id"] for entry in content["annotations"]}
    groups = {
        category.get("supercategory")
        for content in contents.values()
        for category in content["categories"]
    }
    dropped = [found.pop(0)] if 0 in found and 0 not in used and found[0] in groups else []
    names = [name.lower() for name in found.values()]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        where = ", ".join(map(str, contents))
        raise ValueError(f"{where}: two categories are called {twice[0]!r}; rename one of them")
    return dict(sorted(found.items())), dropped


def _check_references(source: Path, content: Any, categories: Mapping[int, str]) -> None:
    """ValueError unless every annotation belongs to one image of the file and to a category."""
    images = Counter(image["id"] for image in content["images"])
    twice = [id for id, times in images.items() if times > 1]
    if twice:
        raise ValueError(f"{source} has two images with the id {twice[0]!r}; number them again")
    for field, known, kind in (
        ("image_id", images, "images"),
        ("category_id", categories, "categories"),
    ):
        wrong = [entry[field] for entry in content["annotations"] if entry[field] not in known]
        if wrong:
            raise ValueError(
                f"{source} has {len(wrong)} annotations whose {field} is none of its {kind}, the first "
                f"{wrong[0]!r}; correct or remove them"
            )


def _values(categories: Mapping[int, str], reading: Reading) -> dict[int, int]:
    names = [name.lower() for name in reading.names_with_rest(categories.values())]
    return {
        category: reading.rest if name.lower() in BACKGROUND else names.index(name.lower())
        for category, name in categories.items()
    }


def _photos(
    files: PhotoFiles, contents: Mapping[Path, Any], value_of: Mapping[int, int], reading: Reading
) -> tuple[list[ForeignPhoto], int, int]:
    """Photos, and how many annotations have no outline and how many photos no object."""
    photos, without, empty = [], 0, 0
    for source, content in contents.items():
        with naming(source):
            outlines: dict[Any, list[Any]] = defaultdict(list)
            for entry in content["annotations"]:
                if "segments_info" in entry:
                    raise ValueError(
                        f"{source} holds panoptic annotations; use those of the instances"
                    )
                if entry.get("segmentation"):
                    outlines[entry["image_id"]].append(entry)
                else:
                    without += 1
            if content["annotations"] and not outlines:
                raise ValueError(f"{source} holds boxes but no outlines, which masks need")
            for image in content["images"]:
                empty += image["id"] not in outlines
                entries = outlines[image["id"]]
                photos.append(_photo(files, source, image, entries, value_of, reading))
    return photos, without, empty


def _photo(
    files: PhotoFiles,
    source: Path,
    image: Any,
    entries: Sequence[Any],
    value_of: Mapping[int, int],
    reading: Reading,
) -> ForeignPhoto:
    name = str(image["file_name"])
    path, where = files.find(source, name), f"{source}, image {name}"
    place = files.place(path)
    height, width = (
        int(number(image.get(side), f"{where}: its {side}")) for side in ("height", "width")
    )
    shapes = [
        (
            value_of[entry["category_id"]],
            number(entry.get("area") or 0, f"{where}: area of an annotation"),
            entry["segmentation"],
        )
        for entry in entries
    ]
    return ForeignPhoto(
        id=id_of(place),
        path=path,
        part=part_of(source.parent.relative_to(files.root), source.stem) or part_of(place.parent),
        mask=functools.partial(_draw, shapes, (height, width), reading.rest),
        where=where,
    )


def _draw(shapes: Sequence[tuple[int, float, Any]], size: tuple[int, int], rest: int) -> np.ndarray:
    canvas = Canvas(size, rest=rest)
    for value, _, segmentation in sorted(shapes, key=lambda shape: -shape[1]):
        draw_segmentation(canvas, segmentation, value)
    return canvas.label()
