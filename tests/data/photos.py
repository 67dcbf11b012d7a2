"""Small folders of images as a user would lay them out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semivl_jax.data.source import Source, open_source
from tfds_builders import common
from tfds_builders.folder_semi import FolderSemi

CLASSES = "sky\nroad: road, street\ncar\n"


def write_pair(root: Path, name: str, *, rng, size=(40, 56), mask=True, suffix=".jpg") -> None:
    """One image of noise and, if wanted, a mask with the values 0 and 1 and a corner of 255."""
    image = root / "images" / f"{name}{suffix}"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    if mask:
        values = rng.integers(0, 2, size, dtype=np.uint8)
        values[:4, :4] = 255
        target = root / "masks" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(target)


def make_folder(root: Path, *, masks=6, without=7, validation=3) -> Path:
    """train00 … with masks, then some without, and val00 …; sizes differ."""
    rng = np.random.default_rng(0)
    for i in range(masks + without):
        size = (24 + 5 * (i % 4), 30 + 7 * (i % 3))
        write_pair(root, f"train/train{i:02d}", rng=rng, size=size, mask=i < masks)
    for i in range(validation):
        write_pair(root, f"val/val{i:02d}", rng=rng)
    (root / "classes.txt").write_text(CLASSES)
    return root


def prepared(root: Path, part: str = "train") -> Source:
    builder = FolderSemi(root, data_dir=root.parent / "prepared")
    return open_source(common.prepare(builder), part)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos") / "my photos")


@pytest.fixture(scope="session")
def toy_source(toy_folder) -> Source:
    return prepared(toy_folder)
