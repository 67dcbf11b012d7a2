"""Builder for a folder of the user's own images; `scan` says how the folder is laid out.

Photos go into the records as they are (other formats than PNG and JPEG are stored as PNG); masks
become one-channel PNG with the label map applied.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from semivl_jax.data.catalog import DatasetInfo
from tfds_builders import common
from tfds_builders.folder_semi.scan import Found, scan

_AS_THEY_ARE = (".png", ".jpg", ".jpeg")

# One byte per pixel that means the number stored there; colours (RGB) mean nothing by themselves.
_INDEX_MODES = ("L", "P", "1", "I", "I;16")


class FolderSemi(common.SegmentationBuilder):
    """Images of a folder with masks for some of them."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        folder: str | Path,
        *,
        label_map: Mapping[int, int] | None = None,
        data_dir: str | Path,
    ) -> None:
        """Scan `folder`; the prepared copy goes below `data_dir`, one for every state of the folder.

        Raises:
          ValueError: the folder lacks something (see `scan`), or the label map leads to a value that
            is neither a class nor ignored.
        """
        self.folder = scan(folder)
        self.label_map = dict(label_map or {})
        about = self.folder.about
        for old, new in self.label_map.items():
            if new >= about.num_classes and new != about.ignore:
                raise ValueError(
                    f"config.data.label_map maps {old} to {new}, but the classes of "
                    f"{self.folder.root}/classes.txt are 0 to {about.num_classes - 1} and "
                    f"{about.ignore} is ignored; choose one of these"
                )
        slug = re.sub(r"[^a-z0-9]+", "_", about.name.lower()).strip("_") or "folder"
        own = Path(data_dir).expanduser() / f"{slug}-{self.folder.fingerprint(self.label_map)}"
        super().__init__(data_dir=own)

    def about(self) -> DatasetInfo:
        """Classes of classes.txt."""
        return self.folder.about

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {
            "train": self.write("train", self._samples(self.folder.train)),
            "validation": self.write("validation", self._samples(self.folder.validation)),
        }

    def _samples(self, part: tuple[Found, ...]) -> Iterator[common.Sample]:
        # Reading and re-encoding happens in threads; `write` then checks what came out.
        return common.ordered_map(self._sample, part)

    def _sample(self, found: Found) -> common.Sample:
        as_it_is = found.image.suffix.lower() in _AS_THEY_ARE
        return common.Sample(
            id=found.id,
            image=found.image if as_it_is else as_png(found.image),
            label=None if found.mask is None else self._label(found.mask),
            origin=str(found.image),
        )

    def _label(self, path: Path) -> bytes:
        label = read_mask(path, self.label_map)
        about = self.folder.about
        for value in np.unique(label):
            if value >= about.num_classes and value != about.ignore:
                raise ValueError(
                    f"mask {path} has the value {value}, but {self.folder.root}/classes.txt names the "
                    f"values 0 to {about.num_classes - 1}; name it there, or ignore it with "
                    f'--config.data.label_map="{value}:{about.ignore}"'
                )
        return _encode(Image.fromarray(label))


def as_png(path: Path) -> bytes:
    """Store an image of another format as PNG.

    Raises:
      ValueError: the file cannot be read.
    """
    return _encode(_open(path, "image").convert("RGB"))


def read_mask(path: Path, label_map: Mapping[int, int]) -> np.ndarray:
    """Class indices of a grey or palette PNG, uint8 [h, w], after the label map.

    Raises:
      ValueError: the file cannot be read, holds colours, or values above 255.
    """
    mask = _open(path, "mask")
    if mask.mode not in _INDEX_MODES:
        raise ValueError(
            f"mask {path} has colours (PNG mode {mask.mode}); save class indices, as a grey or a "
            "palette PNG"
        )
    values = np.asarray(mask)
    if values.size and values.max() > 255:
        raise ValueError(f"mask {path} has the value {values.max()}; class indices end at 255")
    table = np.arange(256, dtype=np.uint8)
    for old, new in label_map.items():
        table[old] = new
    return table[values.astype(np.uint8)]


def _open(path: Path, what: str) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{what} {path} cannot be read ({error}); replace the file or take it out of the folder"
        ) from error
    return picture


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
