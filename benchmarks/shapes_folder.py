"""Writes images of `shapes` as a folder, for benchmarks that need further images or masks of regions.

    python -m benchmarks.shapes_folder runs/ood --seed=1 --images=3000

Out: OUT/images/train_NNNNN.png and classes.txt with the concepts of every class. Seed 0 draws the training
images of `shapes`, another one further images of the same kind, without masks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from semivl_jax import utils
from tfds_builders.shapes import generator, words


def write(
    images: Path, part: str, indices: Iterable[int], *, seed: int = 0, masks: Path | None = None
) -> None:
    """Scenes of a part as PNG below `images`, and their whole masks below `masks`."""

    def draw(index: int) -> None:
        scene = generator.sample(part, index, seed=seed)
        name = f"{part}_{index:05d}.png"
        save(images / name, scene.image)
        if masks is not None:
            save(masks / name, scene.label)

    for _ in utils.ordered_map(draw, indices):
        pass


def save(path: Path, pixels: np.ndarray) -> None:
    """Pixels as PNG."""
    with utils.atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_classes(folder: Path) -> None:
    """classes.txt with a line "name: concept, concept" per class."""
    lines = (f"{name}: {', '.join(concepts)}\n" for name, concepts in words.DEFINITIONS.items())
    utils.write_text(folder / "classes.txt", "".join(lines))


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.shapes_folder", __doc__)
    add = command.add_argument
    add("out", type=Path, help="folder that is written")
    add("--seed", type=int, default=1, help="of the images; default: %(default)s")
    add("--images", type=utils.positive, default=3000, help="how many; default: %(default)s")
    return command


def main() -> None:
    """Writes the images and the classes."""
    options = parser().parse_args()
    write(options.out / "images", "train", range(options.images), seed=options.seed)
    write_classes(options.out)


if __name__ == "__main__":
    main()
