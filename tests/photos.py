"""A small folder of photos and masks as a user would have it, made for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "disc", "box")


def make_folder(root: Path, *, train: int = 8, validation: int = 2, size: tuple = (40, 48)) -> Path:
    """images/{train,val}, masks/{train,val} and classes.txt; every second training image has no mask."""
    rng = np.random.default_rng(0)
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for part, count in (("train", train), ("val", validation)):
        for index in range(count):
            label = np.zeros(size, np.uint8)
            label[5:20, 6:22] = 1
            label[22:36, 20:44] = 2
            label = np.roll(label, rng.integers(-4, 5, 2), (0, 1))
            colours = np.array([[90, 120, 60], [200, 60, 40], [50, 70, 210]], np.float64)
            image = colours[label] + rng.normal(0, 12, (*size, 3))
            name = f"{part}/photo_{index:02d}.png"
            for kind, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", label)):
                if kind == "masks" and part == "train" and index % 2:
                    continue
                path = root / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root
