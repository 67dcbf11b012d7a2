"""Builders of COCO 2017 with 80 object classes and background: 118 287 and 5 000 images (docs/semivl.md 6).

Images come from the data set's own archives, masks from the archive that was published with the method, or
(`coco_instances`) from the official annotations, for when that archive is not available.
"""

from __future__ import annotations

from typing import ClassVar

from semivl_jax.data.download import RemoteFile
from tfds_builders.archives import Archive
from tfds_builders.coco_semi import instances
from tfds_builders.published import Members, PublishedBuilder, semivl_masks

MASKS, ANNOTATIONS = "ground_truth_coco.zip", "annotations_trainval2017.zip"
_FOLDERS = {"train": "train2017", "validation": "val2017"}
_SITE = "https://cocodataset.org"


def _official(kind: str, name: str) -> RemoteFile:
    url = f"http://images.cocodataset.org/{kind}/{name}"
    return RemoteFile(name=name, url=url, page=f"{_SITE}/#download")


_IMAGE_FILES = tuple(_official("zips", f"{folder}.zip") for folder in _FOLDERS.values())


class CocoSemi(PublishedBuilder):
    """COCO 2017: 80 kinds of objects and background in photographs of everyday scenes."""

    DATASET = "coco"
    HOMEPAGE = _SITE
    SIZES: ClassVar[dict[str, int]] = {"train": 118_287, "validation": 5_000}
    LAYOUT: ClassVar = {
        part: (Members(f"{folder}.zip", ".jpg"), Members(MASKS, ".png"))
        for part, folder in _FOLDERS.items()
    }
    FILES = (*_IMAGE_FILES, semivl_masks(MASKS))

    def _masks(self, part: str, name: str) -> Archive:
        try:
            return super()._masks(part, name)
        except ValueError as error:
            raise ValueError(
                f"{error}; or take coco_instances, which draws the masks from the official annotations "
                "(docs/datasets.md says how they differ)"
            ) from error


class CocoInstances(CocoSemi):
    """COCO 2017 as in `CocoSemi`, with masks drawn from the instance annotations."""

    DATASET = "coco_instances"
    CLASSES_OF = "coco"
    FILES = (*_IMAGE_FILES, _official("annotations", ANNOTATIONS))

    def _masks(self, part: str, name: str) -> Archive:
        archive = self.archive(ANNOTATIONS)
        member = f"instances_{_FOLDERS[part]}.json"
        found = archive.find(suffix=member)
        if not found:
            raise ValueError(f"{archive.path} holds no {member}; delete it and start again")
        path = next(iter(found.values()))
        return instances.mask_archive(archive.path / path, archive.read(path))
