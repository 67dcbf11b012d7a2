"""Builder of ADE20K as in the scene parsing challenge: 20 210 and 2 000 images, 150 classes.

Stored masks count classes from 1; 0 means anything else and does not count. Here classes begin at 0 and
0 becomes 255 (docs/semivl.md 6).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from semivl_jax.data import label_files
from semivl_jax.data.download import RemoteFile
from tfds_builders import common
from tfds_builders.published import Members, PublishedBuilder

ARCHIVE = "ADEChallengeData2016.zip"


def _members(folder: str) -> tuple[Members, Members]:
    return (
        Members(ARCHIVE, ".jpg", f"images/{folder}"),
        Members(ARCHIVE, ".png", f"annotations/{folder}"),
    )


class Ade20kSemi(PublishedBuilder):
    """ADE20K: indoor and outdoor scenes, 150 classes of things and stuff."""

    DATASET = "ade20k"
    HOMEPAGE = "http://sceneparsing.csail.mit.edu"
    SIZES: ClassVar[dict[str, int]] = {"train": 20_210, "validation": 2_000}
    LAYOUT: ClassVar = {"train": _members("training"), "validation": _members("validation")}
    FILES = (
        RemoteFile(
            name=ARCHIVE,
            url=f"http://data.csail.mit.edu/places/ADEchallenge/{ARCHIVE}",
            page=HOMEPAGE,
        ),
    )

    def _label(self, stored: bytes) -> bytes:
        label = label_files.decode_label(stored)
        if label.max() > 150:  # 255 would become 254, with a less clear error
            raise ValueError(f"it has the value {label.max()}; ADE20K stores 0 to 150")
        return common.encode_png(label - np.uint8(1))  # 0 - 1 = 255 in 8 bits
