"""Builder of Cityscapes, finely annotated: 2 975 and 500 images of 19 classes (docs/semivl.md 6).

Images take a login at the data set's site. Masks come from the archive that was published with the method
(train ids, 255 = does not count).
"""

from __future__ import annotations

from typing import ClassVar

from semivl_jax.data.download import RemoteFile
from tfds_builders.published import Members, PublishedBuilder, semivl_masks

IMAGES, MASKS = "leftImg8bit_trainvaltest.zip", "ground_truth_cityscapes.zip"


def _members(folder: str) -> tuple[Members, Members]:
    return Members(IMAGES, "_leftImg8bit.png", folder), Members(MASKS, "_gtFine_labelTrainIds.png")


class CityscapesSemi(PublishedBuilder):
    """Cityscapes: street scenes of 50 cities from a car, 19 classes."""

    DATASET = "cityscapes"
    HOMEPAGE = "https://www.cityscapes-dataset.com"
    SIZES: ClassVar[dict[str, int]] = {"train": 2_975, "validation": 500}
    LAYOUT: ClassVar = {"train": _members("train"), "validation": _members("val")}
    FILES = (
        RemoteFile(name=IMAGES, page=f"{HOMEPAGE}/file-handling/?packageID=3"),
        semivl_masks(MASKS),
    )
