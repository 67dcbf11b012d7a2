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

from semivl_jax.data.find_images import images_in
from semivl_jax.data.foreign.dataset import (
    PARTS,
    ForeignDataset,
    ForeignPhoto,
    Reading,
    counted,
    id_of,
    part_of,
    unlabelled,
)
from semivl_jax.data.foreign.drawing import Canvas

_AREAS = ("polygon", "box", "ellipse", "mask")


def read(root: Path, file: Path, reading: Reading) -> ForeignDataset:
    """The photos of an annotation file.

    Raises:
      ValueError: no XML of CVAT, a photo that is not there, rotated shapes.
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
    files = images_in(root).files
    by_name = {path.name: path for path in files}
    photos = [_photo(root, file, image, value_of, by_name, reading) for image in images]
    lines = Counter(
        shape.tag
        for image in images
        for shape in image
        if shape.get("label") and shape.tag not in _AREAS
    )
    notes = [f"annotations: {file.relative_to(root)}"]
    if lines:
        notes.append(f"left out: shapes without an area: {counted(lines)}")
    others = unlabelled(root, files, photos)
    return ForeignDataset("cvat", names, (*photos, *others), tuple(notes))


def _photo(
    root: Path,
    file: Path,
    image: ElementTree.Element,
    value_of: Mapping[str, int],
    by_name: Mapping[str, Path],
    reading: Reading,
) -> ForeignPhoto:
    name = image.get("name", "")
    candidates = [folder / name for folder in (root, root / "images", file.parent)]
    path = next((p for p in candidates if p.is_file()), by_name.get(Path(name).name))
    if path is None:
        raise ValueError(f"{file} names the photo {name}, which is not below {root}")
    size = int(image.get("height", 0)), int(image.get("width", 0))
    shapes = [shape for shape in image if shape.tag in _AREAS]
    turned = [shape.tag for shape in shapes if float(shape.get("rotation", 0))]
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
        id=id_of(Path(name)),
        path=path,
        part=PARTS.get(image.get("subset", "").lower(), "") or part_of(Path(name).parent),
        mask=functools.partial(_draw, shapes, size, value_of, reading.rest),
        where=f"{file}, image {name}",
    )


def _draw(
    shapes: Sequence[ElementTree.Element],
    size: tuple[int, int],
    value_of: Mapping[str, int],
    rest: int,
) -> np.ndarray:
    canvas = Canvas(size, rest=rest)
    for shape in sorted(shapes, key=lambda shape: int(shape.get("z_order", 0))):
        value = value_of[" ".join(shape.get("label", "").split())]

        def number(name: str, shape: ElementTree.Element = shape) -> float:
            return float(shape.get(name, "nan"))

        if shape.tag == "polygon":
            points = [pair.split(",") for pair in shape.get("points", "").split(";")]
            canvas.polygon(points, value)
        elif shape.tag == "box":
            canvas.rectangle(*map(number, ("xtl", "ytl", "xbr", "ybr")), value)
        elif shape.tag == "ellipse":
            canvas.ellipse(*map(number, ("cx", "cy", "rx", "ry")), value)
        else:
            left, top, width, height = (int(number(n)) for n in ("left", "top", "width", "height"))
            counts = [int(count) for count in shape.get("rle", "").split(",")]
            if sum(counts) != width * height:
                raise ValueError(
                    f"run lengths of {sum(counts)} pixels for a mask of {width}x{height}"
                )
            inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
            canvas.mask(inside, value, left=left, top=top)
    return canvas.label()
