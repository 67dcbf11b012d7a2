"""Prepares shapes as ArrayRecord: 3000 training and 300 validation scenes, PNG, with captions.

    prepare(Builder(data_dir="data"))

Everything is drawn here; nothing is downloaded. With the same seed and the same OpenCV the records are
the same to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.utils import ordered_map
from tfds_builders.common import Sample, SegmentationBuilder
from tfds_builders.shapes import generator, words


class Builder(SegmentationBuilder, skip_registration=True):
    """Drawn scenes of toys, animals and things on textured ground, with label maps and captions.

    Some classes have concepts that look different and share a plain name that captions seldom use
    (vehicle: car, truck, bus); tiger and leopard share an outline and differ in their fur.
    """

    name = "shapes"
    VERSION = tfds.core.Version("2.0.0")

    def __init__(
        self,
        *,
        data_dir: str,
        seed: int = 0,
        train: int = generator.PARTS["train"],
        validation: int = generator.PARTS["validation"],
    ) -> None:
        """`seed` draws other pictures, `train` and `validation` are numbers of scenes.

        All three are part of the directory's name. ValueError for a part without scenes.
        """
        for part, count in (("train", train), ("validation", validation)):
            if count < 1:
                raise ValueError(f"shapes: {part} = {count} scenes; it needs at least 1")
        self._seed, self._count = seed, {"train": train, "validation": validation}
        config = tfds.core.BuilderConfig(name=f"seed{seed}_{train}_{validation}")
        super().__init__(data_dir=data_dir, config=config)

    def about(self) -> DatasetInfo:
        """The eight classes, their concepts and colours."""
        return DatasetInfo(
            name=self.name,
            classes=words.CLASSES,
            definitions=tuple(words.DEFINITIONS.values()),
            palette=np.array(words.PALETTE, np.uint8),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict]]]:
        return {part: self.write(part, self._scenes(part)) for part in self._count}

    def _scenes(self, part: str) -> Iterator[Sample]:
        def draw(index: int) -> Sample:
            scene = generator.sample(part, index, seed=self._seed)
            return Sample(
                id=f"{part}_{index:05d}",
                image=_png(scene.image[..., ::-1]),
                label=_png(scene.label),
                captions=scene.captions,
            )

        return ordered_map(draw, range(self._count[part]))


def _png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels, colours in OpenCV's order (B, G, R)."""
    return cv2.imencode(".png", pixels)[1].tobytes()
