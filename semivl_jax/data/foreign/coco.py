"""COCO's instance annotations: one JSON per part, with outlines or run lengths.

Values are 0 for the background and 1, 2, … for the categories in the order of their numbers. Objects are
drawn from large to small, so that a small one stays visible on a large one.
"""

from __future__ import annotations

import functools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semivl_jax.data.dataset_info import IGNORE_INDEX
from semivl_jax.data.find_images import images_in
from semivl_jax.data.foreign.dataset import (
    ForeignDataset,
    ForeignPhoto,
    Reading,
    id_of,
    part_of,
    unlabelled,
)
from semivl_jax.data.foreign.drawing import Canvas, draw_segmentation

_REST = {0: "background", IGNORE_INDEX: "ignored"}


def is_coco(content: Any) -> bool:
    """Whether a JSON file holds annotations in this format."""
    return (
        isinstance(content, Mapping) and {"images", "annotations", "categories"} <= content.keys()
    )


def read(root: Path, files: Sequence[Path], reading: Reading) -> ForeignDataset:
    """The photos of annotation files.

    Raises:
      ValueError: files whose categories differ, annotations without outlines, a photo that is not there or
        not unique.
    """
    contents = {path: json.loads(path.read_text(encoding="utf-8-sig")) for path in files}
    categories, dropped = _categories(contents)
    photos, without, empty = _photos(root, contents, _values(categories, reading), reading)
    notes = [f"annotations: {', '.join(str(path.relative_to(root)) for path in files)}"]
    if empty:
        notes.append(f"{empty} photos have no object, so all of them is {_REST[reading.rest]}")
    if dropped:
        notes.append(f"left out: category {', '.join(dropped)}, which nothing belongs to")
    if without:
        notes.append(f"left out: {without} annotations without an outline")
    more = unlabelled(root, images_in(root).files, photos)
    names = reading.names_with_rest(categories.values())
    return ForeignDataset("coco", names, (*photos, *more), tuple(notes))


def _categories(contents: Mapping[Path, Any]) -> tuple[dict[int, str], list[str]]:
    """{number: name} of all files, sorted, and Roboflow's category 0, which only groups the others."""
    found: dict[int, str] = {}
    for path, content in contents.items():
        for category in content["categories"]:
            number, name = category["id"], " ".join(str(category["name"]).split())
            if found.setdefault(number, name) != name:
                raise ValueError(
                    f"{path} calls the category {number} {name!r}, another file {found[number]!r}; convert "
                    "them one by one"
                )
    used = {a["category_id"] for content in contents.values() for a in content["annotations"]}
    unknown = sorted(used - found.keys())
    if unknown:
        raise ValueError(f"annotations have the category {unknown[0]}, which has no name")
    groups = {
        category.get("supercategory")
        for content in contents.values()
        for category in content["categories"]
    }
    dropped = [found.pop(0)] if 0 in found and 0 not in used and found[0] in groups else []
    names = [name.lower() for name in found.values()]
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ValueError(f"two categories are called {twice[0]!r}; rename one of them")
    return dict(sorted(found.items())), dropped


def _values(categories: Mapping[int, str], reading: Reading) -> dict[int, int]:
    names = [name.lower() for name in reading.names_with_rest(categories.values())]
    return {
        number: names.index(name.lower()) if name.lower() in names else IGNORE_INDEX
        for number, name in categories.items()
    }


def _photos(
    root: Path, contents: Mapping[Path, Any], value_of: Mapping[int, int], reading: Reading
) -> tuple[list[ForeignPhoto], int, int]:
    files = images_in(root).files
    by_name = defaultdict(list)
    for path in files:
        by_name[path.name].append(path)
    photos, without, empty = [], 0, 0
    for source, content in contents.items():
        outlines: dict[Any, list[tuple[int, float, Any]]] = defaultdict(list)
        for entry in content["annotations"]:
            if "segments_info" in entry:
                raise ValueError(f"{source} holds panoptic annotations; use those of the instances")
            if not entry.get("segmentation"):
                without += 1
                continue
            area = float(entry.get("area") or 0)
            shape = (value_of[entry["category_id"]], area, entry["segmentation"])
            outlines[entry["image_id"]].append(shape)
        if content["annotations"] and not outlines:
            raise ValueError(f"{source} holds boxes but no outlines, which masks need")
        for image in content["images"]:
            empty += image["id"] not in outlines
            path = _find(root, source, str(image["file_name"]), by_name)
            relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
            size = int(image["height"]), int(image["width"])
            photos.append(
                ForeignPhoto(
                    id=id_of(relative),
                    path=path,
                    part=part_of(source.parent.relative_to(root), source.stem)
                    or part_of(relative.parent),
                    mask=functools.partial(_draw, outlines[image["id"]], size, reading.rest),
                    where=f"{source}, image {image['file_name']}",
                )
            )
    return photos, without, empty


def _find(root: Path, source: Path, name: str, by_name: Mapping[str, list[Path]]) -> Path:
    name = name.replace("\\", "/")
    for folder in (source.parent, source.parent / "images", root, root / "images"):
        path = Path(os.path.normpath(folder / name))
        if path.is_file():
            return path
    same = by_name.get(Path(name).name, [])
    if len(same) == 1:
        return same[0]
    there = f"{len(same)} times below" if same else "not below"
    raise ValueError(f"{source} names the photo {name}, which is {there} {root}; correct the path")


def _draw(shapes: Sequence[tuple[int, float, Any]], size: tuple[int, int], rest: int) -> np.ndarray:
    canvas = Canvas(size, rest=rest)
    for value, _, segmentation in sorted(shapes, key=lambda shape: -shape[1]):
        draw_segmentation(canvas, segmentation, value)
    return canvas.label()
