"""Builder of COCO 2017 with 80 object classes and background: 118 287 and 5 000 images (METHOD 6).

Images come from the data set's own archives, masks from the archive that was published with the method.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from semivl_jax.data.download import RemoteFile
from tfds_builders import published

_PHOTOS = {"train": "train2017", "validation": "val2017"}
MASKS = "ground_truth_coco.zip"
_SITE = "https://cocodataset.org"


class CocoSemi(published.PublishedBuilder):
    """COCO 2017: 80 kinds of objects and background in photographs of everyday scenes."""

    VERSION = tfds.core.Version("1.0.0")
    DATASET = "coco"
    SIZES: ClassVar[dict[str, int]] = {"train": 118_287, "validation": 5_000}
    FILES = published.read_checksums(
        Path(__file__).parent,
        (
            *(
                RemoteFile(
                    name=f"{folder}.zip",
                    url=f"http://images.cocodataset.org/zips/{folder}.zip",
                    page=f"{_SITE}/#download",
                )
                for folder in _PHOTOS.values()
            ),
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
        # First the small ones: what is wrong with them shows before gigabytes have come.
        masks = self.archive(MASKS)
        found = masks.find(suffix=".png")
        pairs = {}
        for part in ("validation", "train"):
            images = self.archive(f"{_PHOTOS[part]}.zip")
            pairs[part] = self._match(images, images.find(suffix=".jpg"), masks, found)
        return pairs
