"""CVAT's annotations.xml ("CVAT for images"): polygons, boxes, ellipses and masks of a whole task.

Values are 0 for the background and 1, 2, … for the labels in the order of the file. Shapes are drawn in the
order of their layers (z_order).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from semivl_jax.data.foreign.dataset import (
    PARTS,
    ForeignDataset,
    ForeignPhoto,
    Reading,
    counted,
    id_of,
    number,
    part_of,
    unlabelled,
)
from semivl_jax.data.foreign.drawing import Canvas
from semivl_jax.data.foreign.photo_files import PhotoFiles

_AREAS = ("polygon", "box", "ellipse", "mask")


def read(root: Path, file: Path, reading: Reading) -> ForeignDataset:
    """The photos of an annotation file.

    Raises:
      ValueError: no XML of CVAT, a photo that is not there or not unique, rotated shapes.
    """
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} cannot be read as XML ({error}); export it again") from error
    images = tree.findall("image")
    labels = [
        " ".join((name.text or "").split()) for name in tree.iterfind("meta//labels/label/name")
    ]
    if not images or not labels:
        raise ValueError(f"{file} has no images or labels; export the task as 'CVAT for images'")
    names = reading.names_with_rest(dict.fromkeys(labels))
    # A label that is no class is the background, which is like what lies outside all outlines.
    values = {name: value for value, name in enumerate(names)}
    value_of = {label: values.get(label, reading.rest) for label in labels}
    files = PhotoFiles(root)
    photos = [_photo(files, file, image, value_of, reading) for image in images]
    lines = Counter(
        shape.tag
        for image in images
        for shape in image
        if shape.get("label") and shape.tag not in _AREAS
    )
    notes = [f"annotations: {file.relative_to(root)}"]
    if lines:
        notes.append(f"left out: shapes without an area: {counted(lines)}")
    others = unlabelled(root, files.files, photos)
    return ForeignDataset("cvat", names, (*photos, *others), tuple(notes))


def _photo(
    files: PhotoFiles,
    file: Path,
    image: ElementTree.Element,
    value_of: Mapping[str, int],
    reading: Reading,
) -> ForeignPhoto:
    name = image.get("name", "")
    subset = image.get("subset", "")
    path = files.find(file, name, part=subset)
    place, where = files.place(path), f"{file}, image {name}"
    height, width = (
        int(number(image.get(side), f"{where}: its {side}")) for side in ("height", "width")
    )
    shapes = [shape for shape in image if shape.tag in _AREAS]
    turned = [
        s.tag for s in shapes if number(s.get("rotation", 0), f"{where}: rotation of a {s.tag}")
    ]
    if turned:
        raise ValueError(f"{file}: a {turned[0]} in {name} is rotated; draw it as a polygon")
    unknown = [
        s.get("label") for s in shapes if " ".join(s.get("label", "").split()) not in value_of
    ]
    if unknown:
        raise ValueError(
            f"{file}: a shape in {name} has the label {unknown[0]!r}, which is not listed"
        )
    return ForeignPhoto(
        id=id_of(place),
        path=path,
        part=PARTS.get(subset.lower(), "") or part_of(place.parent),
        mask=functools.partial(_draw, shapes, (height, width), value_of, reading.rest),
        where=where,
    )


def _draw(
    shapes: Sequence[ElementTree.Element],
    size: tuple[int, int],
    value_of: Mapping[str, int],
    rest: int,
) -> np.ndarray:
    canvas = Canvas(size, rest=rest)
    for shape in sorted(shapes, key=lambda shape: _number(shape, "z_order", 0)):
        value = value_of[" ".join(shape.get("label", "").split())]
        if shape.tag == "polygon":
            points = [pair.split(",") for pair in shape.get("points", "").split(";")]
            canvas.polygon(points, value)
        elif shape.tag == "box":
            canvas.rectangle(*(_number(shape, n) for n in ("xtl", "ytl", "xbr", "ybr")), value)
        elif shape.tag == "ellipse":
            canvas.ellipse(*(_number(shape, n) for n in ("cx", "cy", "rx", "ry")), value)
        else:
            left, top, width, height = (
                int(_number(shape, n)) for n in ("left", "top", "width", "height")
            )
            texts = shape.get("rle", "").split(",")
            counts = [int(number(text.strip(), "rle of a mask")) for text in texts]
            if sum(counts) != width * height or min(*counts, width, height) < 0:
                raise ValueError(
                    f"run lengths of {sum(counts)} pixels for a mask of {width}x{height}; draw it again"
                )
            inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
            canvas.mask(inside, value, left=left, top=top)
    return canvas.label()


def _number(shape: ElementTree.Element, name: str, default: float | None = None) -> float:
    return number(shape.get(name, default), f"{name} of a {shape.tag}")
