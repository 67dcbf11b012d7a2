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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tfds_builders.archives import Archive
from tfds_builders.common import encode_png

_FINER = 4  # the canvas, along both sides
_FRACTION_BITS = 4  # outlines have sub-pixel corners

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
    """Label map uint8 [h, w] of the objects of an image.

    A pixel belongs to the object that covers its centre. OpenCV also fills what an outline touches, so
    it draws on a finer canvas, of which the centres are taken.
    """
    fine = np.zeros((size[0] * _FINER, size[1] * _FINER), np.uint8)
    for value, _, outline in sorted(shapes, key=lambda shape: -shape[1]):
        if isinstance(outline, Mapping):
            crowd = run_lengths(outline["counts"], size)
            fine[crowd.repeat(_FINER, axis=0).repeat(_FINER, axis=1)] = value
            continue
        for corners in outline:
            # COCO counts from the corner of a pixel, OpenCV from its centre.
            points = np.asarray(corners, np.float64).reshape(-1, 1, 2) * _FINER - 0.5
            fixed = np.round(points * 2**_FRACTION_BITS).astype(np.int32)
            cv2.fillPoly(fine, [fixed], int(value), cv2.LINE_8, _FRACTION_BITS)
    return np.ascontiguousarray(fine[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER])


def run_lengths(counts: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Lengths of runs outside, inside, outside, … down the columns, as bool [h, w].

    Raises:
      ValueError: the runs do not add up to the image.
    """
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths of {sum(counts)} pixels for an image of {size[1]}x{size[0]}")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(size[1], size[0]).T


def _encoded(shapes: Sequence[Shape], size: tuple[int, int]) -> bytes:
    return encode_png(draw(shapes, size))
