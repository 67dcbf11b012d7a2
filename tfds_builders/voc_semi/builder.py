"""Builder of Pascal VOC 2012, augmented (METHOD 6): 10 582 training and 1 449 validation images.

Images come from the challenge's own archive. Masks come from the archive that was published with the method
(21 classes, 255 = border, the training part extended by the masks of Hariharan et al.). Which images belong
to which part stands in the published lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from semivl_jax.data import published_splits
from semivl_jax.data.download import RemoteFile
from tfds_builders import published

IMAGES, MASKS = "VOCtrainval_11-May-2012.tar", "ground_truth_voc.zip"
_LISTS = {
    "train": ("1464/labeled.txt", "1464/unlabeled.txt"),  # together they are all of it
    "validation": ("val.txt",),
}


def _list_file(path: str) -> RemoteFile:
    return published_splits.remote_list("voc", path, published_splits.VOC_PARTS[path])


class VocSemi(published.PublishedBuilder):
    """Pascal VOC 2012: 20 kinds of objects and background in photographs, augmented training set."""

    VERSION = tfds.core.Version("1.0.0")
    DATASET = "voc"
    SIZES: ClassVar[dict[str, int]] = {"train": 10_582, "validation": 1_449}
    FILES = published.read_checksums(
        Path(__file__).parent,
        (
            RemoteFile(
                name=IMAGES,
                url=f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{IMAGES}",
                page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
            ),
            RemoteFile(
                name=MASKS,
                url=f"{published.SEMIVL_RELEASE}/{MASKS}",
                page="https://github.com/google-research/semivl",
            ),
            *(_list_file(path) for paths in _LISTS.values() for path in paths),
        ),
    )

    @property
    def homepage(self) -> str:
        """The challenge's site."""
        return "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"

    @property
    def citation(self) -> str:
        """The challenge and the additional masks."""
        return (Path(__file__).parent / "citation.bib").read_text(encoding="utf8")

    def _pairs(self) -> dict[str, list[published.Pair]]:
        images, masks = self.archive(IMAGES), self.archive(MASKS)
        photos = images.find(suffix=".jpg", folder="JPEGImages")
        found = masks.find(suffix=".png")
        pairs = {}
        for part, lists in _LISTS.items():
            files = [self.path(_list_file(path).name) for path in lists]
            ids = [name for file in files for name in published_splits.read_ids(file)]
            missing = sorted(set(ids) - set(photos))
            if missing:
                raise ValueError(
                    f"{images.path} has no image {missing[0]} ({len(missing)} of {part} in all); it is "
                    "incomplete, delete it and start again"
                )
            chosen = {name: photos[name] for name in ids}
            pairs[part] = self._match(images, chosen, masks, found)
        return pairs
