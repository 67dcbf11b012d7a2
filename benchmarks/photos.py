"""Generated images and masks for benchmarks: clouds, shapes with sharp edges, noise.

Their JPEGs have about as many bytes per pixel as those of photos, because the time to decode depends on it.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_THINGS = 30


def draw(rng: np.random.Generator, shape: tuple[int, int], *, classes: int) -> tuple:
    """An image uint8 [h, w, 3] and its mask uint8 [h, w] with values below `classes` and 255."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    colour = np.zeros((height, width, 3), np.float32)
    colour[:] = rng.uniform(60, 200, 3)
    for _ in range(_THINGS):
        centre = rng.uniform((0, 0), (width, height))
        corners = centre + rng.normal(0, height / 7, (int(rng.integers(3, 9)), 2))
        hull = cv2.convexHull(corners.astype(np.int32))
        cv2.fillPoly(mask, [hull], int(rng.integers(classes)))
        cv2.fillPoly(colour, [hull], rng.uniform(0, 255, 3).tolist())
        cv2.polylines(mask, [hull], True, 255, 3)
    for cell in (2, 4, 16, 64):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2, 3), np.float32)
        colour += 3 * cell**0.4 * cv2.resize(coarse, (width, height))
    colour += 6 * rng.standard_normal((height, width, 1), np.float32)
    return np.clip(colour, 0, 255).astype(np.uint8), mask


def make_folder(
    root: Path, shape: tuple[int, int], *, count: int, labelled: int, classes: int
) -> int:
    """Writes a folder for `folder_semi`; returns the mean size of a JPEG in bytes."""
    rng = np.random.default_rng(0)
    for part in ("images/train", "images/val", "masks/train", "masks/val"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"class {i}\n" for i in range(classes)))
    sizes = []
    for number in range(count + 1):
        part = "val" if number == count else "train"
        photo, mask = draw(rng, shape, classes=classes)
        path = root / "images" / part / f"{number:03d}.jpg"
        Image.fromarray(photo).save(path, quality=92)
        sizes.append(path.stat().st_size)
        if number < labelled or part == "val":
            Image.fromarray(mask).save(root / "masks" / part / f"{number:03d}.png")
    return sum(sizes) // len(sizes)
