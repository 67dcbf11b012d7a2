"""LabelMe's annotations: one JSON beside every photo.

Values are those of a class list (`labels.txt` or --classes), else 0 for the background and 1, 2, … for the
labels in alphabetical order. Shapes are drawn in the order of the file. The label `__ignore__` is void,
`_background_` the background.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semivl_jax.data.class_files import IGNORED, parse_classes
from semivl_jax.data.dataset_info import IGNORE_INDEX
from semivl_jax.data.find_images import images_in
from semivl_jax.data.foreign.dataset import (
    ForeignDataset,
    ForeignPhoto,
    Reading,
    counted,
    id_of,
    part_of,
    unlabelled,
)
from semivl_jax.data.foreign.drawing import Canvas
from semivl_jax.data.text_files import read_lines

_BACKGROUND = ("background", "_background_")
_AREAS = ("polygon", "rectangle", "circle", "mask")


def is_labelme(content: Any) -> bool:
    """Whether a JSON file holds annotations in this format."""
    return isinstance(content, Mapping) and {"shapes", "imagePath"} <= content.keys()


def read(root: Path, files: Sequence[Path], reading: Reading) -> ForeignDataset:
    """The photos of annotation files; photos without one are unlabelled.

    Raises:
      ValueError: no photo for a file, a label that the class list does not have, a shape that cannot be
        drawn.
    """
    contents = {path: json.loads(path.read_text(encoding="utf-8-sig")) for path in files}
    contents = {path: content for path, content in contents.items() if is_labelme(content)}
    shapes = [shape for content in contents.values() for shape in content["shapes"]]
    labels = {" ".join(str(shape["label"]).split()) for shape in shapes}
    names, note = _names(root, labels, reading)
    value_of = {name: value for value, name in enumerate(names)} | {IGNORED: IGNORE_INDEX}
    value_of |= {label: reading.rest for label in labels if label.lower() in _BACKGROUND}
    unknown = sorted(labels - value_of.keys())
    if unknown:
        raise ValueError(f"the class list lacks the label {unknown[0]!r}; add it there")
    photos = {
        path: _photo(root, path, content, value_of, reading) for path, content in contents.items()
    }
    others = unlabelled(root, images_in(root).files, photos.values())
    lines = Counter(
        kind for s in shapes if (kind := s.get("shape_type") or "polygon") not in _AREAS
    )
    notes = [f"annotations: {len(photos)} JSON files", note]
    if lines:
        notes.append(f"left out: shapes without an area: {counted(lines)}")
    return ForeignDataset("labelme", names, (*photos.values(), *others), tuple(notes))


def _names(root: Path, labels: set[str], reading: Reading) -> tuple[tuple[str, ...], str]:
    own = (root / name for name in ("labels.txt", "classes.txt"))
    path = reading.classes or next((path for path in own if path.is_file()), None)
    if path is not None:
        listed = parse_classes(read_lines(path), where=str(path)).names
        return reading.names_with_rest(listed), f"classes: {path}"
    found = sorted(labels - {IGNORED, *_BACKGROUND})
    return reading.names_with_rest(found), "classes: labels in alphabetical order"


def _photo(
    root: Path, file: Path, content: Any, value_of: Mapping[str, int], reading: Reading
) -> ForeignPhoto:
    named = file.parent / str(content["imagePath"]).replace("\\", "/")
    path = Path(os.path.normpath(named))
    if not path.is_file():
        path = file.parent / path.name
    if not path.is_file():
        raise ValueError(f"{file} belongs to the photo {content['imagePath']}, which is not there")
    size = content.get("imageHeight"), content.get("imageWidth")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"{file} does not say the size of its photo (imageHeight, imageWidth)")
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return ForeignPhoto(
        id=id_of(relative),
        path=path,
        part=part_of(relative.parent),
        mask=functools.partial(_draw, content["shapes"], size, value_of, reading.rest),
        where=str(file),
    )


def _draw(
    shapes: Sequence[Any], size: tuple[int, int], value_of: Mapping[str, int], rest: int
) -> np.ndarray:
    canvas = Canvas(size, rest=rest)
    for shape in shapes:
        value = value_of[" ".join(str(shape["label"]).split())]
        kind, points = shape.get("shape_type") or "polygon", shape["points"]
        if kind == "polygon":
            canvas.polygon(points, value)
        elif kind == "rectangle":
            corners = np.asarray(points, np.float64)
            canvas.rectangle(*corners.min(0), *corners.max(0), value)
        elif kind == "circle":
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            canvas.ellipse(x, y, radius, radius, value)
        elif kind == "mask":
            picture = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
            left, top = (round(side) for side in points[0])
            canvas.mask(np.asarray(picture.convert("L")) > 0, value, left=left, top=top)
    return canvas.label()
