"""Finds the images of a user's folder, their masks, the classes and the validation images.

    classes.txt            one class per line, `name` or `name: concept, concept`; line i is mask value i
    images/…               photos; with images/val (or images/validation) those are for validation and
                           images/train, or else everything beside it, is for training
    masks/…                PNG with class indices (grey or palette), at the image's relative path;
                           an image without a mask is unlabelled
    val.txt                instead of images/val: ids of the validation images, one per line
    unlabelled/…           more training images without masks, if you keep them apart; the folder may be a
                           symbolic link

An image's id is its path below its part (images/train, images/val or images) without the suffix; below
unlabelled/ it starts with "unlabelled/". Suffixes may be in capitals, folders may be symbolic links, and
what is hidden (begins with a dot) is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from semivl_jax.data.dataset_info import (
    IMAGE_SUFFIXES,
    DatasetInfo,
    parse_classes,
    read_lines,
)

_VALIDATION_FOLDERS = ("val", "validation")


@dataclasses.dataclass(frozen=True)
class FolderImage:
    """An image on disk, its id, and its mask if there is one."""

    id: str
    image: Path
    mask: Path | None


@dataclasses.dataclass(frozen=True)
class Folder:
    """A scanned folder; `orphans` are masks that belong to no image."""

    root: Path
    about: DatasetInfo
    train: tuple[FolderImage, ...]
    validation: tuple[FolderImage, ...]
    orphans: tuple[Path, ...]

    def fingerprint(self, label_map: Mapping[int, int]) -> str:
        """Twelve hex digits that change when a file, a class or the label map does."""
        digest = hashlib.sha256()
        digest.update(repr((self.about.to_json(), sorted(label_map.items()))).encode())
        for part in (self.train, self.validation):
            for found in part:
                for path in (found.image, found.mask):
                    if path is not None:
                        facts = path.stat()
                        line = (found.id, path.name, facts.st_size, facts.st_mtime_ns)
                        digest.update(repr(line).encode())
            digest.update(b"next part")
        return digest.hexdigest()[:12]


def parse_label_map(text: str, *, num_classes: int) -> dict[int, int]:
    """Mask values to change, from text such as "11:255,12:3"; empty text changes none.

    "n" is the number of classes, the first value that is no class: many tools write it where nothing is
    labelled, and "n:255" ignores it.

    Raises:
      ValueError: something that is not VALUE:VALUE with both in 0 … 255, or a value mapped twice.
    """
    label_map: dict[int, int] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(n|\d{1,3})\s*:\s*(\d{1,3})", entry)
        old = new = 256
        if match:
            old, new = num_classes if match[1] == "n" else int(match[1]), int(match[2])
        if max(old, new) > 255:
            raise ValueError(
                f"config.data.label_map has the entry {entry!r}; write OLD:NEW with mask values "
                "from 0 to 255, for example 11:255, or n:255 for the value after the last class"
            )
        if old in label_map:
            raise ValueError(f"config.data.label_map maps the value {old} twice; keep one entry")
        label_map[old] = new
    return label_map


def scan(root: str | Path) -> Folder:
    """Scans a folder of the layout above.

    Raises:
      ValueError: no such folder, no images/, classes.txt or validation images, two images with one
        id or one mask, masks none of which belongs to an image or that are no PNG, a validation image
        without a mask, an unlabelled/ without images, a broken link, a name that is not UTF-8.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"config.data.folder is {str(root)!r}, which is no folder; correct the path"
        )
    images = root / "images"
    if not images.is_dir():
        raise ValueError(f"{root} has no folder images/; put your photos there")
    about = _read_classes(root)
    masks = _find_masks(root)
    train, validation = _split_parts(root, images, masks)
    train = _match(root, root, _unlabelled_files(root), {}, others=train)
    _check_shared_masks(root, (*train, *validation))
    used = {found.mask for found in (*train, *validation)}
    orphans = tuple(path for path in masks.values() if path not in used)
    if not any(found.mask for found in train):
        example = f", for example {orphans[0].relative_to(root)}" if orphans else ""
        raise ValueError(
            f"{root} has no mask for any training image ({len(orphans)} other masks{example}); "
            "save masks/NAME.png for images/NAME.jpg, with the same sub-folders"
        )
    for found in validation:
        if found.mask is None:
            raise ValueError(
                f"validation image {found.image.relative_to(root)} has no mask, so it cannot be "
                "evaluated; add the mask or move the image to the training images"
            )
    return Folder(
        root=root, about=about, train=tuple(train), validation=tuple(validation), orphans=orphans
    )


def _read_classes(root: Path) -> DatasetInfo:
    path = root / "classes.txt"
    if not path.is_file():
        raise ValueError(
            f"{root} has no classes.txt; write one class name per line, the first for mask value 0"
        )
    names, definitions = parse_classes(read_lines(path), where=str(path))
    if not names:
        raise ValueError(f"{path} names no class; write one class name per line")
    return DatasetInfo(
        name=root.resolve().name,
        classes=tuple(names),
        definitions=tuple(definitions),
    )


def _find_masks(root: Path) -> dict[str, Path]:
    """{path below masks/ without the suffix: file}."""
    folder = root / "masks"
    if not folder.is_dir():
        return {}
    files = _files(folder)
    masks = {_name(path, folder): path for path in files if path.suffix.lower() == ".png"}
    for path in files:
        if _name(path, folder) not in masks:
            raise ValueError(
                f"{path.relative_to(root)} in {root} is no PNG; save masks as PNG, which keeps every value "
                "(JPEG does not)"
            )
    return masks


def _check_shared_masks(root: Path, images: Iterable[FolderImage]) -> None:
    owners: dict[Path, FolderImage] = {}
    for found in images:
        other = owners.setdefault(found.mask, found) if found.mask else found
        if other is not found:
            raise ValueError(
                f"{other.image.relative_to(root)} and {found.image.relative_to(root)} in {root} would "
                f"both have the mask {found.mask.relative_to(root)}; put masks into folders like those "
                "of the images"
            )


def _split_parts(
    root: Path, images: Path, masks: Mapping[str, Path]
) -> tuple[list[FolderImage], list[FolderImage]]:
    """Training and validation images below images/."""
    held_out = [images / name for name in _VALIDATION_FOLDERS if (images / name).is_dir()]
    listed = root / "val.txt"
    if len(held_out) + listed.is_file() != 1:
        has = ", ".join(str(p.relative_to(root)) for p in held_out) or "neither"
        raise ValueError(
            f"{root} must say which images are for validation in one way, either images/val or "
            f"val.txt with one id per line (there is {has}{' and val.txt' * listed.is_file()})"
        )
    train_root = images / "train" if (images / "train").is_dir() else images
    paths = [path for path in _files(train_root) if not set(held_out) & set(path.parents)]
    train = _match(root, train_root, paths, masks)
    if held_out:
        return train, _match(root, held_out[0], _files(held_out[0]), masks)
    wanted = {line.strip() for line in read_lines(listed)} - {""}
    unknown = wanted - {found.id for found in train}
    if unknown:
        raise ValueError(
            f"{listed} lists {min(unknown)!r}, which is no image below {train_root}; write the file "
            "name without its suffix"
        )
    validation = [found for found in train if found.id in wanted]
    return [found for found in train if found.id not in wanted], validation


def _unlabelled_files(root: Path) -> list[Path]:
    """The images below unlabelled/, if there is such a folder."""
    folder = root / "unlabelled"
    paths = _files(folder) if folder.is_dir() else []
    if folder.is_dir() and not paths:
        raise ValueError(f"{folder} holds no image; put some there or remove the folder")
    return paths


def _match(
    root: Path,
    part: Path,
    paths: Iterable[Path],
    masks: Mapping[str, Path],
    *,
    others: Iterable[FolderImage] = (),
) -> list[FolderImage]:
    """`others` and the images of a part, whose ids are their paths below it, with their masks."""
    images = {found.id: found for found in others}
    for path in paths:
        name = _name(path, part)
        if name in images:
            raise ValueError(
                f"{path.relative_to(root)} and {images[name].image.relative_to(root)} would have the "
                f"same id {name!r}; rename one of them"
            )
        # The second where masks/ has no folder of its own for the part.
        mask = masks.get(_name(path, root).removeprefix("images/")) or masks.get(name)
        images[name] = FolderImage(name, path, mask)
    return list(images.values())


def _files(folder: Path) -> list[Path]:
    """Images below a folder, sorted; symbolic links are followed, hidden files left out."""
    found: list[Path] = []
    entered: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(parent)
        if real in entered:  # links in a circle
            folders.clear()
            continue
        entered.add(real)
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)
    for path in found:
        if not path.is_file():
            raise ValueError(f"{path} is a link to a file that is not there; restore or remove it")
    return sorted(found)


def _name(path: Path, folder: Path) -> str:
    """Path below a folder without its suffix, accented letters composed; ValueError if not UTF-8."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the file name {os.fsencode(path)!r} is no UTF-8 text; rename the file"
        ) from error
    return unicodedata.normalize("NFC", name)
