"""Pictures of single validation images, one file per kind, for the report.

    samples/samples.json          step, ids, scores, names of the files
    samples/000-truth.png …       label maps as palette PNGs in the colours of their classes, 255 transparent
    samples/000-image.jpg         the image itself

In: uint8 RGB images and uint8 label maps [h, w] of one aspect each. Out: files whose longer side is at most
`SIDE` pixels. No two classes share a colour in these files, so the colour of a pixel identifies its class.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Integer, UInt8
from PIL import Image

from semivl_jax import utils
from semivl_jax.types import IGNORE_INDEX

SIDE = 384
INDEX = "samples.json"
RIGHT, WRONG = (206, 212, 222), (214, 40, 57)
"""Colours of the error map."""
LEVELS = 20
"""Levels of the confidence map; the usual threshold 0.95 is one of them."""
_DARK, _LIGHT = np.array((20, 24, 60)), np.array((252, 214, 92))

Palette = UInt8[np.ndarray, "n 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One validation image, its labels and predictions; `chosen` is the reason for showing it.

    Maps may have other sizes than the image, of the same aspect. `iou` is NaN where nothing is labelled.
    """

    id: str
    iou: float
    chosen: str
    image: UInt8[np.ndarray, "_ _ 3"]
    truth: UInt8[np.ndarray, "h w"]
    prediction: UInt8[np.ndarray, "h w"]
    pseudo: UInt8[np.ndarray, "_ _"] | None = None
    confidence: Float32[np.ndarray, "_ _"] | None = None
    guidance: UInt8[np.ndarray, "_ _"] | None = None


def save(folder: Path, step: int, samples: Iterable[Sample], *, palette: Palette) -> None:
    """Replaces the folder as a whole."""
    colours = distinct(palette)
    entries = []
    with utils.replace_folder(folder) as temporary:
        for number, sample in enumerate(samples):
            files = {}
            for kind, picture in _pictures(sample, colours).items():
                files[kind] = f"{number:03d}-{kind}.{'jpg' if picture.mode == 'RGB' else 'png'}"
                options = {"quality": 86} if picture.mode == "RGB" else {"optimize": True}
                picture.save(temporary / files[kind], **options)
            iou = None if math.isnan(sample.iou) else sample.iou
            entries.append({"id": sample.id, "iou": iou, "chosen": sample.chosen, "files": files})
        index = {"step": step, "palette": colours.tolist(), "samples": entries}
        (temporary / INDEX).write_text(json.dumps(index, indent=1), encoding="utf8")


def distinct(palette: Palette) -> Palette:
    """The palette with repeated colours moved by as little as makes them different."""
    taken: set[tuple[int, ...]] = {RIGHT, WRONG}
    colours = []
    for colour in palette.tolist():
        near = (
            tuple((v + s) % 256 for v, s in zip(colour, shift, strict=True)) for shift in _SHIFTS
        )
        chosen = next(candidate for candidate in near if candidate not in taken)
        taken.add(chosen)
        colours.append(chosen)
    return np.asarray(colours, np.uint8)


_SHIFTS = sorted(np.ndindex(8, 8, 8), key=sum)


def _pictures(sample: Sample, colours: Palette) -> dict[str, Image.Image]:
    image = Image.fromarray(sample.image)
    pictures = {"image": image.resize(_fitted(image.size), Image.Resampling.LANCZOS)}
    for kind in ("truth", "prediction", "pseudo", "guidance"):
        label = getattr(sample, kind)
        if label is not None:
            pictures[kind] = _indexed(label, colours)
    wrong = (sample.prediction != sample.truth).astype(np.uint8)
    errors = np.where(sample.truth == IGNORE_INDEX, IGNORE_INDEX, wrong)
    pictures["error"] = _indexed(errors, np.asarray([RIGHT, WRONG], np.uint8))
    if sample.confidence is not None:
        level = np.floor(sample.confidence * LEVELS + 1e-6).clip(0, LEVELS).astype(np.uint8)
        share = np.linspace(0, 1, LEVELS + 1)[:, None]
        ramp = np.round(_DARK + share * (_LIGHT - _DARK)).astype(np.uint8)
        pictures["confidence"] = _indexed(level, ramp)
    return pictures


def _indexed(label: Integer[np.ndarray, "h w"], colours: Palette) -> Image.Image:
    """A palette picture whose pixel values are the label's; 255 is transparent."""
    picture = Image.fromarray(np.ascontiguousarray(label, dtype=np.uint8)).convert("L")
    size = _fitted(picture.size)
    picture = picture.resize(size, Image.Resampling.NEAREST)
    indexed = Image.frombytes("P", size, picture.tobytes())
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    indexed.putpalette(table.tobytes())
    indexed.info["transparency"] = bytes([255] * 255 + [0])
    return indexed


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
