"""Builder for a folder of the user's own images; see `scan` for its layout.

Photos go into the records as they are (other formats than PNG and JPEG are stored as PNG); masks
become one-channel PNG with the label map applied.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from semivl_jax import utils
from semivl_jax.data import deep_images, images, label_files
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.data.find_images import describe_left_out
from tfds_builders import common
from tfds_builders.folder_semi.scan import FolderImage, parse_label_map, scan

T = TypeVar("T")

_AS_THEY_ARE = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")


class FolderSemi(common.SegmentationBuilder):
    """Images of a folder with masks for some of them.

    Notes of a part: photos "turned" upright by their EXIF data, photos with "N bits" of which more than 8 are
    used, pixels that "label_map OLD:NEW" changes, and "transparent" pixels of colour masks.
    """

    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, folder: str | Path, *, label_map: str = "", data_dir: str | Path) -> None:
        """Scans `folder`; the prepared copy goes below `data_dir`, one for every state of the folder.

        `label_map` changes mask values, see `parse_label_map`.

        Raises:
          ValueError: the folder lacks something (see `scan`), or the label map contains a value that
            is neither a class nor ignored.
        """
        self.folder = scan(folder)
        root, orphans = self.folder.root, self.folder.orphans
        if self.folder.left_out:
            print(f"{root}: {describe_left_out(self.folder.left_out)}", flush=True)
        if orphans:
            print(
                f"{root}: {len(orphans)} masks belong to no image and are not used, for example "
                f"{orphans[0].relative_to(root)}",
                flush=True,
            )
        about = self.folder.about
        self.label_map = parse_label_map(label_map, num_classes=about.num_classes)
        self._names_n = "n" in label_map
        for old, new in self.label_map.items():
            if new >= about.num_classes and new != about.ignore:
                raise ValueError(
                    f"config.data.label_map maps {old} to {new}, but the classes of "
                    f"{self.folder.class_file} are 0 to {about.num_classes - 1} and "
                    f"{about.ignore} is ignored; choose one of these"
                )
        slug = re.sub(r"[^a-z0-9]+", "_", about.name.lower()).strip("_") or "folder"
        own = utils.user_path(data_dir) / f"{slug}-{self.folder.fingerprint(self.label_map)}"
        super().__init__(data_dir=own)

    def about(self) -> DatasetInfo:
        """Classes of classes.txt."""
        return self.folder.about

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        train, validation = self.folder.train, self.folder.validation
        return {
            "train": self.write("train", self._samples(train), then=self._samples(validation)),
            "validation": self.write("validation", self._samples(validation)),
        }

    def _samples(self, part: tuple[FolderImage, ...]) -> Iterator[common.Sample]:
        # Reading and re-encoding happens in threads; `write` then checks what came out.
        return utils.ordered_map(self._sample, part)

    def _sample(self, found: FolderImage) -> common.Sample:
        sample = common.Sample(id=found.id, image=found.image, origin=str(found.image))
        problems, notes = [], Counter()
        if found.mask is not None:
            try:
                label, notes = self._label(found.mask)
                _check_turned(found, label)
                sample = dataclasses.replace(sample, label=common.encode_png(label))
            except common.UnusableError as error:
                problems.append(error)
        try:
            notes["turned"] += _read(found.image, images.stored_size)[1] != 1
            bits = _read(found.image, deep_images.stored_bits)
            notes[f"{bits} bits"] += bits != 8
            if problems or bits != 8 or found.image.suffix.lower() not in _AS_THEY_ARE:
                pixels = _read(found.image, images.decode_image)
                sample = dataclasses.replace(sample, image=common.encode_png(pixels))
        except common.UnusableError as error:
            problems.append(error)
        return dataclasses.replace(sample, problems=tuple(problems), notes=+notes)

    def _label(self, path: Path) -> tuple[np.ndarray, Counter[str]]:
        """The mask with the label map applied, and notes on it."""
        about, colours, notes = self.folder.about, self.folder.colours, Counter()
        if colours:
            label = _read(path, lambda data: label_files.decode_colours(data, colours))
            notes["transparent"] = _read(path, label_files.transparent_pixels)
        else:
            label = _read(path, label_files.decode_label)
        table = np.arange(256, dtype=np.uint8)
        for old, new in self.label_map.items():
            table[old] = new
            if old != new:
                name = "n" if self._names_n and old == about.num_classes else old
                notes[f"label_map {name}:{new}"] = int((label == old).sum())
        label = table[label]
        for value in np.unique(label):
            if value >= about.num_classes and value != about.ignore:
                raise common.UnusableError(
                    f"mask {path}",
                    f"has the value {value}, but {self.folder.class_file} names the "
                    f"values 0 to {about.num_classes - 1}; name it there, or ignore it with "
                    f'--config.data.label_map="{value}:{about.ignore}"',
                    alike=True,
                )
        return label, notes


def _check_turned(found: FolderImage, label: np.ndarray) -> None:
    """UnusableError for a mask of a photo's pixels as they are stored, before EXIF data turn them."""
    stored, turn = _read(found.image, images.stored_size)
    if turn > 4 and label.shape == stored and stored[0] != stored[1]:
        rows, columns = stored
        raise common.UnusableError(
            f"mask {found.mask}",
            f"of {columns}×{rows} pixels fits its photo only as it is stored: the photo's EXIF data "
            f"(orientation {turn}) turn it to {rows}×{columns}; turn the mask as well, or save the photo "
            "upright",
            alike=True,
        )


def _read(path: Path, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(path.read_bytes())
    except (ValueError, OSError) as error:
        raise common.UnusableError(str(path), f"cannot be used: {error}") from error
