"""Builder of Pascal VOC 2012, augmented (docs/semivl.md 6): 10 582 training and 1 449 validation images.

Images come from the challenge's own archive. Masks come from the archive that was published with the method
(21 classes, 255 = border, the training part extended by the masks of Hariharan et al.). The published
lists assign images to parts.
"""

from __future__ import annotations

from typing import ClassVar

from semivl_jax.data import published_splits
from semivl_jax.data.download import RemoteFile
from tfds_builders.published import Members, PublishedBuilder, semivl_masks

IMAGES, MASKS = "VOCtrainval_11-May-2012.tar", "ground_truth_voc.zip"
_MEMBERS = Members(IMAGES, ".jpg", "JPEGImages"), Members(MASKS, ".png")
_LISTS = {
    part: tuple(published_splits.remote_list("voc", path) for path in paths)
    for part, paths in published_splits.VOC_PARTS.items()
}


class VocSemi(PublishedBuilder):
    """Pascal VOC 2012: 20 kinds of objects and background in photographs, augmented training set."""

    DATASET = "voc"
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    SIZES: ClassVar[dict[str, int]] = {"train": 10_582, "validation": 1_449}
    LAYOUT: ClassVar = dict.fromkeys(_LISTS, _MEMBERS)
    FILES = (
        RemoteFile(name=IMAGES, url=f"{HOMEPAGE}{IMAGES}", page=HOMEPAGE),
        semivl_masks(MASKS),
        *(file for files in _LISTS.values() for file in files),
    )

    def _ids(self, part: str) -> list[str]:
        files = [self.path(file.name) for file in _LISTS[part]]
        return [name for file in files for name in published_splits.read_ids(file)]
