"""Builder of ADE20K as in the scene parsing challenge: 20 210 and 2 000 images, 150 classes (METHOD 6).

Stored masks count classes from 1; 0 means anything else and does not count. Here classes begin at 0 and
0 becomes 255.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from semivl_jax.data import images
from semivl_jax.data.download import RemoteFile
from tfds_builders import published

ARCHIVE = "ADEChallengeData2016.zip"
_FOLDERS = {"train": "training", "validation": "validation"}
_SITE = "http://sceneparsing.csail.mit.edu"


class Ade20kSemi(published.PublishedBuilder):
    """ADE20K: indoor and outdoor scenes, 150 classes of things and stuff."""

    VERSION = tfds.core.Version("1.0.0")
    DATASET = "ade20k"
    SIZES: ClassVar[dict[str, int]] = {"train": 20_210, "validation": 2_000}
    FILES = published.read_checksums(
        Path(__file__).parent,
        (
            RemoteFile(
                name=ARCHIVE,
                url=f"http://data.csail.mit.edu/places/ADEchallenge/{ARCHIVE}",
                page=_SITE,
            ),
        ),
    )

    @property
    def homepage(self) -> str:
        """The challenge's site."""
        return _SITE

    @property
    def citation(self) -> str:
        """The paper of the data set."""
        return (Path(__file__).parent / "citation.bib").read_text(encoding="utf8")

    def _pairs(self) -> dict[str, list[published.Pair]]:
        archive = self.archive(ARCHIVE)
        return {
            part: self._match(
                archive,
                archive.find(suffix=".jpg", folder=f"images/{folder}"),
                archive,
                archive.find(suffix=".png", folder=f"annotations/{folder}"),
            )
            for part, folder in _FOLDERS.items()
        }

    def _label(self, stored: bytes) -> bytes:
        label = images.decode_label(stored)
        if label.max() > 150:  # 255 would become 254, which is no class either but says less
            raise ValueError(f"it has the value {label.max()}; ADE20K stores 0 to 150")
        return published.encode_png(label - np.uint8(1))  # 0 - 1 = 255 in 8 bits
