"""Builder of Cityscapes, finely annotated: 2 975 and 500 images of 19 classes (METHOD 6).

Images take a login at the data set's site. Masks come from the archive that was published with the method
(train ids, 255 = does not count).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from semivl_jax.data.download import RemoteFile
from tfds_builders import published

IMAGES, MASKS = "leftImg8bit_trainvaltest.zip", "ground_truth_cityscapes.zip"
_FOLDERS = {"train": "train", "validation": "val"}
_SITE = "https://www.cityscapes-dataset.com"


class CityscapesSemi(published.PublishedBuilder):
    """Cityscapes: street scenes of 50 cities from a car, 19 classes."""

    VERSION = tfds.core.Version("1.0.0")
    DATASET = "cityscapes"
    SIZES: ClassVar[dict[str, int]] = {"train": 2_975, "validation": 500}
    FILES = published.read_checksums(
        Path(__file__).parent,
        (
            RemoteFile(name=IMAGES, page=f"{_SITE}/file-handling/?packageID=3"),
            RemoteFile(
                name=MASKS,
                url=f"{published.SEMIVL_RELEASE}/{MASKS}",
                page="https://github.com/google-research/semivl",
            ),
        ),
    )

    @property
    def homepage(self) -> str:
        """The data set's site."""
        return _SITE

    @property
    def citation(self) -> str:
        """The paper of the data set."""
        return (Path(__file__).parent / "citation.bib").read_text(encoding="utf8")

    def _pairs(self) -> dict[str, list[published.Pair]]:
        images, masks = self.archive(IMAGES), self.archive(MASKS)
        found = masks.find(suffix="_gtFine_labelTrainIds.png")
        return {
            part: self._match(
                images,
                images.find(suffix="_leftImg8bit.png", folder=folder),
                masks,
                found,
            )
            for part, folder in _FOLDERS.items()
        }
