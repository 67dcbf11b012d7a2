"""Base of the public data sets: archives in, checked records out.

A data set defines the files it needs (`FILES`), the folders of images and masks in them (`LAYOUT`) and how
many images it must have (`SIZES`). Files are looked for in `manual_dir`, if one is given, and else fetched
into `data_dir`/downloads/NAME. In either place an archive may also be unpacked, as a folder of its name
without the suffix. Known checksums are in the data set's checksums.tsv (the format of TFDS: address, bytes,
SHA-256, file name); for other files that of the first download is kept.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from PIL import ExifTags, Image

from semivl_jax import utils
from semivl_jax.data import download
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.data.download import RemoteFile
from semivl_jax.text import class_names
from tfds_builders import archives, common


def semivl_masks(name: str) -> RemoteFile:
    """An archive of masks that was published with the method."""
    return RemoteFile(
        name=name,
        url=f"https://github.com/google-research/semivl/releases/download/checkpoints/{name}",
        page="https://github.com/google-research/semivl",
    )


@dataclasses.dataclass(frozen=True)
class Members:
    """Files of an archive below `folder` that end in `suffix`; what precedes it in the name is the id."""

    archive: str
    suffix: str
    folder: str = ""


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

    VERSION = tfds.core.Version("1.0.0")
    DATASET: ClassVar[str]
    CLASSES_OF: ClassVar[str] = ""  # whose classes it has, if not its own
    FILES: ClassVar[tuple[RemoteFile, ...]]
    LAYOUT: ClassVar[Mapping[str, tuple[Members, Members]]]  # part → images, masks

    def __init__(self, *, data_dir: str | Path, manual_dir: str | Path = "") -> None:
        """Names the folders; nothing is downloaded yet.

        Raises:
          ValueError: `manual_dir` is no folder.
        """
        root = utils.user_path(data_dir)
        self.downloads = root / "downloads" / self.DATASET
        self.manual = utils.user_path(manual_dir) if manual_dir else None
        if self.manual and not self.manual.is_dir():
            raise ValueError(
                f"data.manual_dir = {str(manual_dir)!r} is no folder; name the one with the files that "
                "you downloaded yourself, or leave it empty"
            )
        self.files = self.known_files()
        super().__init__(data_dir=root)

    @classmethod
    def known_files(cls) -> tuple[RemoteFile, ...]:
        """`FILES` with size and checksum where checksums.tsv has them."""
        facts = {}
        for line in (cls._folder() / "checksums.tsv").read_text(encoding="utf8").splitlines():
            if line and not line.startswith("#"):
                _, size, sha256, name = line.split("\t")
                facts[name] = {"size": int(size), "sha256": sha256}
        return tuple(
            file if file.sha256 else dataclasses.replace(file, **facts.get(file.name, {}))
            for file in cls.FILES
        )

    @classmethod
    def _folder(cls) -> Path:
        """Of the data set's module."""
        return Path(inspect.getfile(cls)).parent

    @property
    def citation(self) -> str:
        """The papers of the data set."""
        return (self._folder() / "citation.bib").read_text(encoding="utf8")

    def about(self) -> DatasetInfo:
        """Classes, definitions and colours of the data set."""
        return class_names.dataset_info(self.CLASSES_OF or self.DATASET)

    def status(self) -> list[tuple[str, bool, str]]:
        """(file name, whether it is there, a description) for every file."""
        lines = []
        for file in self.files:
            place = self._by_hand(file)
            there, about = (
                (True, f"there: {place}") if place else download.status(file, self.downloads)
            )
            lines.append((file.name, there, about))
        return lines

    def path(self, name: str) -> Path:
        """A file of the data set, fetched if need be, or the folder it was unpacked into.

        Raises:
          ValueError: it cannot be downloaded or is not the expected one.
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
        """The file, or the folder it was unpacked into, that a user has put there."""
        stem = Path(file.name).stem
        for folder in filter(None, (self.manual, self.downloads)):
            if folder == self.manual and (folder / file.name).is_file():
                return folder / file.name
            if (folder / stem).is_dir():
                return folder / stem
        return None

    def _check_logins(self) -> None:
        """ValueError for a missing file that needs a login, before anything is downloaded."""
        for file in self.files:
            here = self._by_hand(file) or (self.downloads / file.name).exists()
            if not file.url and not here:
                raise ValueError(
                    f"{self.DATASET} needs {file.name}, which takes a login: download it from "
                    f"{file.page} and put it into {self.manual or self.downloads} (it may also lie there "
                    f"unpacked, as the folder {Path(file.name).stem})"
                )

    def _masks(self, part: str, name: str) -> archives.Archive:
        """Masks of a part."""
        return self.archive(name)

    def _ids(self, part: str) -> Sequence[str] | None:
        """Ids of a part in the order of its records, where a list gives them."""
        return None

    def _label(self, stored: bytes) -> bytes:
        """A stored mask as PNG of class indices; by default it is that."""
        return stored

    def _pairs(self, part: str) -> list[Pair]:
        """Images of a part with their masks, sorted by id; ValueError where some are missing."""
        images_at, masks_at = self.LAYOUT[part]
        masks = self._masks(part, masks_at.archive)  # first: they are smaller than the images
        images = self.archive(images_at.archive)
        found = images.find(suffix=images_at.suffix, folder=images_at.folder)
        mask_paths = masks.find(suffix=masks_at.suffix, folder=masks_at.folder)
        ids = self._ids(part)
        ids = sorted(found if ids is None else ids)
        for archive, paths, what in ((images, found, "image"), (masks, mask_paths, "mask")):
            missing = [id for id in ids if id not in paths]
            if missing:
                raise ValueError(
                    f"{archive.path} has no {what} for {missing[0]} ({len(missing)} images of {part} in "
                    "all); it is incomplete or another edition, delete it and start again"
                )
        expected = self.SIZES.get(part, len(ids))
        if len(ids) != expected:
            raise ValueError(
                f"{self.DATASET}: {len(ids)} images for {part} instead of {expected}; {images.path} is "
                "incomplete or another edition, delete it and start again"
            )
        return [
            Pair(id=id, images=images, image=found[id], masks=masks, mask=mask_paths[id])
            for id in ids
        ]

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        self._check_logins()
        pairs = {part: self._pairs(part) for part in reversed(common.PARTS)}  # the small one first
        return {part: self.write(part, self._samples(pairs[part])) for part in common.PARTS}

    def _samples(self, pairs: list[Pair]) -> Iterator[common.Sample]:
        # Reading and re-encoding happens in threads; `write` then checks what came out.
        return utils.ordered_map(self._sample, pairs)

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


def as_stored(image: bytes) -> bytes:
    """The file without the EXIF data that would turn it.

    Masks of these data sets were drawn on pixels as they are stored, and the published implementation
    ignores the orientation, too. Only files with such data change; their pixels do not.
    """
    try:
        turned = Image.open(io.BytesIO(image)).getexif().get(ExifTags.Base.Orientation, 1) != 1
    except (OSError, SyntaxError, ValueError):
        return image  # no image; the check of the records reports it
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
