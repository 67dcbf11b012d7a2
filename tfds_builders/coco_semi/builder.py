"""Builders of COCO 2017 with 80 object classes and background: 118 287 and 5 000 images (METHOD 6).

Images come from the data set's own archives, masks from the archive that was published with the method, or
(`coco_instances`) from the official annotations, in case that archive cannot be had.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from semivl_jax.data.download import RemoteFile
from tfds_builders import published
from tfds_builders.archives import Archive
from tfds_builders.coco_semi import instances

_PHOTOS = {"train": "train2017", "validation": "val2017"}
MASKS, ANNOTATIONS = "ground_truth_coco.zip", "annotations_trainval2017.zip"
_SITE = "https://cocodataset.org"
_FOLDER = Path(__file__).parent


def _official(kind: str, name: str) -> RemoteFile:
    url = f"http://images.cocodataset.org/{kind}/{name}"
    return RemoteFile(name=name, url=url, page=f"{_SITE}/#download")


_IMAGE_FILES = tuple(_official("zips", f"{folder}.zip") for folder in _PHOTOS.values())
_MASK_FILE = RemoteFile(
    name=MASKS,
    url=f"{published.SEMIVL_RELEASE}/{MASKS}",
    page="https://github.com/google-research/semivl",
)


class CocoSemi(published.PublishedBuilder):
    """COCO 2017: 80 kinds of objects and background in photographs of everyday scenes."""

    VERSION = tfds.core.Version("1.0.0")
    DATASET = "coco"
    SIZES: ClassVar[dict[str, int]] = {"train": 118_287, "validation": 5_000}
    FILES = published.read_checksums(_FOLDER, (*_IMAGE_FILES, _MASK_FILE))

    @property
    def homepage(self) -> str:
        """The data set's site."""
        return _SITE

    @property
    def citation(self) -> str:
        """The paper of the data set."""
        return (_FOLDER / "citation.bib").read_text(encoding="utf8")

    def _pairs(self) -> dict[str, list[published.Pair]]:
        # First the small ones: what is wrong with them shows before gigabytes have come.
        masks = self._masks()
        pairs = {}
        for part in ("validation", "train"):
            images = self.archive(f"{_PHOTOS[part]}.zip")
            photos = images.find(suffix=".jpg")
            pairs[part] = self._match(images, photos, masks[part], masks[part].find(suffix=".png"))
        return pairs

    def _masks(self) -> dict[str, Archive]:
        """The archive with the masks of each part."""
        try:
            return dict.fromkeys(_PHOTOS, self.archive(MASKS))
        except ValueError as error:
            raise ValueError(
                f"{error}; or take coco_instances, which draws the masks from the official annotations "
                "(docs/datasets.md says how they differ)"
            ) from error


class CocoInstances(CocoSemi):
    """COCO 2017 as in `CocoSemi`, with masks drawn from the instance annotations."""

    DATASET = "coco_instances"
    WORDS = "coco"
    FILES = published.read_checksums(
        _FOLDER, (*_IMAGE_FILES, _official("annotations", ANNOTATIONS))
    )

    def _masks(self) -> dict[str, Archive]:
        archive = self.archive(ANNOTATIONS)
        masks = {}
        for part, folder in _PHOTOS.items():
            found = archive.find(suffix=f"instances_{folder}.json")
            if not found:
                raise ValueError(f"{archive.path} holds no instances_{folder}.json; delete it")
            name = next(iter(found.values()))
            masks[part] = instances.mask_archive(archive.path / name, archive.read(name))
        return masks
