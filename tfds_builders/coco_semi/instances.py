"""Masks from COCO's instance annotations, drawn when they are read.

In: the JSON of instances_{train,val}2017 (images with sizes, annotations with outlines or run lengths).
Out: an `Archive` of PNG masks, 0 = background, 1 to 80 = categories in the order of their numbers.

Objects are drawn from large to small, so that a small one stays visible on a large one; crowds have their
class.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semivl_jax.data.foreign.drawing import Canvas, draw_segmentation
from tfds_builders.archives import Archive
from tfds_builders.common import encode_png

Shape = tuple[int, float, Any]
"""Class, area, and outlines (lists of x, y, …) or {"counts": run lengths, "size": (h, w)}."""


def mask_archive(path: Path, annotations: bytes) -> Archive:
    """One PNG `masks/ID.png` per image of an annotation file; `path` names it in messages.

    Raises:
      ValueError: no instance annotations.
    """
    try:
        facts = json.loads(annotations)
        classes = {
            c: i for i, c in enumerate(sorted(c["id"] for c in facts["categories"]), start=1)
        }
        shapes: dict[int, list[Shape]] = defaultdict(list)
        for entry in facts["annotations"]:
            shape = (classes[entry["category_id"]], entry["area"], entry["segmentation"])
            shapes[entry["image_id"]].append(shape)
        images = [(i["file_name"], i["height"], i["width"], i["id"]) for i in facts["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no instance annotations ({error!r})") from error
    return Archive(
        path,
        {
            f"masks/{Path(name).stem}.png": functools.partial(
                _encoded, shapes.get(number, ()), (height, width)
            )
            for name, height, width, number in images
        },
    )


def draw(shapes: Sequence[Shape], size: tuple[int, int]) -> np.ndarray:
    """Label map uint8 [h, w] of the objects of an image."""
    canvas = Canvas(size)
    for value, _, outline in sorted(shapes, key=lambda shape: -shape[1]):
        draw_segmentation(canvas, outline, value)
    return canvas.label()


def _encoded(shapes: Sequence[Shape], size: tuple[int, int]) -> bytes:
    return encode_png(draw(shapes, size))
