"""Base of the four public data sets: archives in, checked records out.

A data set says which files it needs (`FILES`), how many images it must have (`SIZES`) and which image goes
with which mask (`_pairs`). Files are looked for in `manual_dir`, if one is named, and else fetched into
`data_dir`/downloads/NAME. In either place an archive may also lie unpacked, as a folder of its name without
the ending. Checksums that are known stand in the data set's checksums.tsv (the format of TFDS: address,
bytes, SHA-256, file name); the first download of another file pins the checksum it had.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import ExifTags, Image

from semivl_jax.data import download
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.data.download import RemoteFile
from semivl_jax.text import class_names
from tfds_builders import archives, common

SEMIVL_RELEASE = "https://github.com/google-research/semivl/releases/download/checkpoints"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One image of an archive and its mask, by path inside."""

    id: str
    images: archives.Archive
    image: str
    masks: archives.Archive
    mask: str


class PublishedBuilder(common.SegmentationBuilder, skip_registration=True):
    """What the public data sets share; see the module."""

    DATASET: ClassVar[str]
    WORDS: ClassVar[str] = ""  # whose classes it has, if not its own
    FILES: ClassVar[tuple[RemoteFile, ...]]
    SIZES: ClassVar[Mapping[str, int]]

    def __init__(
        self,
        *,
        data_dir: str | Path,
        manual_dir: str | Path = "",
        files: tuple[RemoteFile, ...] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """`files` (same names, other addresses) and `sizes` replace the published ones, for mirrors
        and excerpts of a data set.

        Raises:
          ValueError: `manual_dir` is no folder, or `files` have other names.
        """
        known = {file.name for file in self.FILES}
        if files is not None and {file.name for file in files} != known:
            raise ValueError(f"files of {self.DATASET} are called {', '.join(sorted(known))}")
        root = Path(data_dir).expanduser()
        self.downloads = root / "downloads" / self.DATASET
        self.manual = Path(manual_dir).expanduser() if manual_dir else None
        if self.manual and not self.manual.is_dir():
            raise ValueError(
                f"data.manual_dir = {str(manual_dir)!r} is no folder; name the one with the files that "
                "you downloaded yourself, or leave it empty"
            )
        self.files = self.FILES if files is None else files
        self._sizes = dict(self.SIZES if sizes is None else sizes)
        super().__init__(data_dir=root)

    @property
    def expected_sizes(self) -> Mapping[str, int]:
        """Images per part."""
        return self._sizes

    def about(self) -> DatasetInfo:
        """Classes, definitions and colours of the data set."""
        return class_names.dataset_info(self.WORDS or self.DATASET)

    def status(self) -> list[tuple[str, bool, str]]:
        """(file name, is it there?, words about it) for every archive."""
        lines = []
        for file in self.files:
            place = self._by_hand(file)
            there, words = (
                (True, f"there: {place}") if place else download.status(file, self.downloads)
            )
            lines.append((file.name, there, words))
        return lines

    def path(self, name: str) -> Path:
        """A file of the data set, fetched if need be, or the folder it was unpacked into.

        Raises:
          ValueError: it cannot be had or is not the expected one.
        """
        file = next(file for file in self.files if file.name == name)
        place = self._by_hand(file)
        if place is None:
            return download.fetch(file, self.downloads)
        if place.is_file():
            download.verify(file, place, notes=self.downloads)
        return place

    def archive(self, name: str) -> archives.Archive:
        """`path`, opened; ValueError also for a damaged archive."""
        return archives.open_archive(self.path(name))

    def _by_hand(self, file: RemoteFile) -> Path | None:
        """Where a person put the file or the folder it was unpacked into."""
        stem = Path(file.name).stem
        for folder in filter(None, (self.manual, self.downloads)):
            if folder == self.manual and (folder / file.name).is_file():
                return folder / file.name
            if (folder / stem).is_dir():
                return folder / stem
        return None

    def _require(self) -> None:
        """All files that need a login at once, rather than one after an hour of downloads.

        Raises:
          ValueError: some are missing.
        """
        for file in self.files:
            here = self._by_hand(file) or (self.downloads / file.name).exists()
            if not file.url and not here:
                raise ValueError(
                    f"{self.DATASET} needs {file.name}, which takes a login: download it from "
                    f"{file.page} and put it into {self.manual or self.downloads} (it may also lie there "
                    f"unpacked, as the folder {Path(file.name).stem})"
                )

    def _pairs(self) -> dict[str, list[Pair]]:
        """Images and masks per part, in the order of the records."""
        raise NotImplementedError

    def _label(self, stored: bytes) -> bytes:
        """A stored mask as PNG of class indices; by default it is that."""
        return stored

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        self._require()
        pairs = self._pairs()
        for part, expected in self.expected_sizes.items():
            if len(pairs[part]) != expected:
                raise ValueError(
                    f"{self.DATASET}: {len(pairs[part])} images for {part} instead of {expected}; an "
                    f"archive in {self.manual or self.downloads} is incomplete or another edition; "
                    "delete it and start again"
                )
        return {part: self.write(part, self._samples(pairs[part])) for part in common.PARTS}

    def _samples(self, pairs: list[Pair]) -> Iterator[common.Sample]:
        # Reading and re-encoding happens in threads; `write` then checks what came out.
        return common.ordered_map(self._sample, pairs)

    def _sample(self, pair: Pair) -> common.Sample:
        origin = f"{pair.image} in {pair.images.path}"
        try:
            label = self._label(pair.masks.read(pair.mask))
        except ValueError as error:
            raise ValueError(f"label of {origin} cannot be used: {error}") from error
        return common.Sample(
            id=pair.id,
            image=as_stored(pair.images.read(pair.image)),
            label=label,
            origin=origin,
        )

    def _match(
        self,
        images: archives.Archive,
        image_paths: Mapping[str, str],
        masks: archives.Archive,
        mask_paths: Mapping[str, str],
    ) -> list[Pair]:
        """Pairs of the same id, sorted by id.

        Raises:
          ValueError: an image without a mask.
        """
        missing = sorted(set(image_paths) - set(mask_paths))
        if missing:
            raise ValueError(
                f"{masks.path} has no mask for {missing[0]} ({len(missing)} images in all); it is "
                "incomplete or another edition, delete it and start again"
            )
        return [
            Pair(id=id, images=images, image=path, masks=masks, mask=mask_paths[id])
            for id, path in sorted(image_paths.items())
        ]


def read_checksums(folder: Path, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
    """The files with size and checksum where `folder`/checksums.tsv knows them."""
    facts = {}
    for line in (folder / "checksums.tsv").read_text(encoding="utf8").splitlines():
        if line and not line.startswith("#"):
            _, size, sha256, name = line.split("\t")
            facts[name] = {"size": int(size), "sha256": sha256}
    return tuple(
        dataclasses.replace(file, **facts[file.name]) if file.name in facts else file
        for file in files
    )


def encode_png(label: np.ndarray) -> bytes:
    """A label map as grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "png")
    return buffer.getvalue()


def as_stored(image: bytes) -> bytes:
    """The file without the EXIF data that would turn it.

    Masks of these data sets were drawn on pixels as they are stored, and the published implementation
    ignores the orientation, too. Only files with such data change; their pixels do not.
    """
    try:
        turned = Image.open(io.BytesIO(image)).getexif().get(ExifTags.Base.Orientation, 1) != 1
    except (OSError, SyntaxError, ValueError):
        return image  # no image; the check of the records says so with its name
    return _without_exif(image) if turned else image


def _without_exif(jpeg: bytes) -> bytes:
    """A JPEG without its APP1 segments; anything else as it is."""
    if jpeg[:2] != b"\xff\xd8":
        return jpeg
    kept, place = [jpeg[:2]], 2
    # Segments: FF, kind, length of two bytes that counts itself; SOS (DA) begins the pixels.
    while jpeg[place] == 0xFF and jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] != 0xE1:
            kept.append(jpeg[place:end])
        place = end
    return b"".join((*kept, jpeg[place:]))
