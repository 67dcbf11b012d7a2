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
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semivl_jax.data.class_files import IGNORED, parse_classes
from semivl_jax.data.dataset_info import IGNORE_INDEX
from semivl_jax.data.foreign.dataset import (
    BACKGROUND,
    ForeignDataset,
    ForeignPhoto,
    Reading,
    counted,
    id_of,
    naming,
    number,
    part_of,
    unlabelled,
)
from semivl_jax.data.foreign.drawing import Canvas, as_points
from semivl_jax.data.foreign.photo_files import PhotoFiles
from semivl_jax.data.text_files import read_lines

_AREAS = ("polygon", "rectangle", "circle", "mask")


def is_labelme(content: Any) -> bool:
    """Whether a JSON file holds annotations in this format."""
    return isinstance(content, Mapping) and {"shapes", "imagePath"} <= content.keys()


def read(root: Path, files: Sequence[Path], reading: Reading) -> ForeignDataset:
    """The photos of annotation files; photos without one are unlabelled.

    Raises:
      ValueError: no photo or several for a file, a label that the class list does not have, a shape that
        cannot be drawn.
    """
    contents = {path: json.loads(path.read_text(encoding="utf-8-sig")) for path in files}
    contents = {path: content for path, content in contents.items() if is_labelme(content)}
    shapes, labels = [], set()
    for path, content in contents.items():
        with naming(path):
            shapes += content["shapes"]
            labels |= {" ".join(str(shape["label"]).split()) for shape in content["shapes"]}
    names, note = _names(root, labels, reading)
    value_of = {name: value for value, name in enumerate(names)} | {IGNORED: IGNORE_INDEX}
    value_of |= {label: reading.rest for label in labels if label.lower() in BACKGROUND}
    unknown = sorted(labels - value_of.keys())
    if unknown:
        raise ValueError(f"the class list lacks the label {unknown[0]!r}; add it there")
    files = PhotoFiles(root)
    photos = [_photo(files, path, content, value_of, reading) for path, content in contents.items()]
    others = unlabelled(root, files.files, photos)
    lines = Counter(
        kind for s in shapes if (kind := s.get("shape_type") or "polygon") not in _AREAS
    )
    notes = [f"annotations: {len(photos)} JSON files", note]
    if lines:
        notes.append(f"left out: shapes without an area: {counted(lines)}")
    return ForeignDataset("labelme", names, (*photos, *others), tuple(notes))


def _names(root: Path, labels: set[str], reading: Reading) -> tuple[tuple[str, ...], str]:
    own = (root / name for name in ("labels.txt", "classes.txt"))
    path = reading.classes or next((path for path in own if path.is_file()), None)
    if path is not None:
        listed = parse_classes(read_lines(path), where=str(path)).names
        return reading.names_with_rest(listed), f"classes: {path}"
    found = sorted(labels - {IGNORED, *BACKGROUND})
    return reading.names_with_rest(found), "classes: labels in alphabetical order"


def _photo(
    files: PhotoFiles, file: Path, content: Any, value_of: Mapping[str, int], reading: Reading
) -> ForeignPhoto:
    name = str(content["imagePath"]).replace("\\", "/")
    if not (file.parent / name).is_file() and (file.parent / Path(name).name).is_file():
        name = Path(name).name  # LabelMe's place for a photo
    path = files.find(file, name)
    place = files.place(path)
    height, width = (
        int(number(content.get(side), f"{file}: its {side}"))
        for side in ("imageHeight", "imageWidth")
    )
    return ForeignPhoto(
        id=id_of(place),
        path=path,
        part=part_of(place.parent),
        mask=functools.partial(_draw, content["shapes"], (height, width), value_of, reading.rest),
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
            corners = _corners(kind, points, 2)
            canvas.rectangle(*corners.min(0), *corners.max(0), value)
        elif kind == "circle":
            (x, y), edge = _corners(kind, points, 2)
            radius = math.dist((x, y), edge)
            canvas.ellipse(x, y, radius, radius, value)
        elif kind == "mask":
            left, top = (round(side) for side in _corners(kind, points, 2)[0])
            canvas.mask(_picture(shape.get("mask")) > 0, value, left=left, top=top)
    return canvas.label()


def _corners(kind: str, points: Any, least: int) -> np.ndarray:
    corners = as_points(points)
    if len(corners) < least:
        raise ValueError(f"a {kind} has {len(corners)} corners, it needs {least}; draw it again")
    return corners


def _picture(text: Any) -> np.ndarray:
    """The grey values of a mask's picture, uint8 [h, w]."""
    try:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L"))
    except (TypeError, ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"a mask holds no picture ({error}); draw it again") from error
