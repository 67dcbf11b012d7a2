"""Finds the images of a user's folder, their masks, the classes and the validation images.

    classes.txt            one class per line, see `data.class_files`; the first is mask value 0. CVAT's
                           labelmap.txt may take its place
    images/…               photos; with images/val (or images/validation) those are for validation and
                           images/train, or else everything beside it, is for training
    masks/…                PNG, TIFF or BMP with class indices (grey or palette), or with the colours of
                           the class list, at the image's relative path; an image without a mask is unlabelled
    val.txt                instead of images/val: ids of the validation images, one per line
    unlabelled/…           more training images without masks, if you keep them apart; the folder may be a
                           symbolic link

An image's id is its path below its part (images/train, images/val or images) without the suffix; below
unlabelled/ it starts with "unlabelled/". Which files are photos: `data.find_images`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from semivl_jax import utils
from semivl_jax.data.class_files import ClassList, Colour, parse_classes
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.data.find_images import IMAGE_SUFFIXES, Found, describe_left_out, images_in
from semivl_jax.data.id_lists import read_id_list
from semivl_jax.data.label_files import LOSSLESS
from semivl_jax.data.text_files import read_lines

_VALIDATION_FOLDERS = ("val", "validation")
_CONVERT = "convert data of another tool: python -m semivl_jax.prepare folder SRC --out=DIR"


@dataclasses.dataclass(frozen=True)
class FolderImage:
    """An image on disk, its id, and its mask if there is one."""

    id: str
    image: Path
    mask: Path | None


@dataclasses.dataclass(frozen=True)
class Folder:
    """A scanned folder.

    `class_file` names the classes, `colours` are label values by colour (empty: masks hold indices),
    `orphans` are masks that belong to no image, `left_out` counts files that are no photos.
    """

    root: Path
    about: DatasetInfo
    class_file: Path
    colours: Mapping[Colour, int]
    train: tuple[FolderImage, ...]
    validation: tuple[FolderImage, ...]
    orphans: tuple[Path, ...]
    left_out: Counter[str]

    def fingerprint(self, label_map: Mapping[int, int]) -> str:
        """Twelve hex digits that change when a file, a class or the label map does."""
        digest = hashlib.sha256()
        facts = (self.about.to_json(), sorted(self.colours.items()), sorted(label_map.items()))
        digest.update(repr(facts).encode())
        for part in (self.train, self.validation):
            for found in part:
                for path in (found.image, found.mask):
                    if path is not None:
                        state = path.stat()
                        line = (found.id, path.name, state.st_size, state.st_mtime_ns)
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
    root = utils.user_path(root)
    if not root.is_dir():
        raise ValueError(
            f"config.data.folder is {str(root)!r}, which is no folder; correct the path, or name it with "
            "--config.data.folder=PATH"
        )
    images = root / "images"
    if not images.is_dir():
        raise ValueError(f"{root} has no folder images/; put your photos there, or {_CONVERT}")
    class_file = _class_file(root)
    classes = parse_classes(read_lines(class_file), where=str(class_file))
    if not classes.names:
        raise ValueError(f"{class_file} names no class; write one class name per line")
    masks = _find_masks(root)
    apart = _unlabelled_files(root)
    train, validation, left_out = _split_parts(root, images, masks)
    train = _match(root, root, apart.files, {}, others=train)
    left_out = left_out + apart.left_out
    if not train:
        raise ValueError(f"{root} has no training image. {describe_left_out(left_out)}".strip())
    _check_shared_masks(root, (*train, *validation))
    used = {found.mask for found in (*train, *validation)}
    orphans = tuple(path for path in masks.values() if path not in used)
    if not any(found.mask for found in train):
        example = f", for example {orphans[0].relative_to(root)}" if orphans else ""
        raise ValueError(
            f"{root} has no mask for any training image ({len(orphans)} other masks{example}); "
            f"save masks/NAME.png for images/NAME.jpg, with the same sub-folders, or {_CONVERT}"
        )
    for found in validation:
        if found.mask is None:
            raise ValueError(
                f"validation image {found.image.relative_to(root)} has no mask, so it cannot be "
                "evaluated; add the mask or move the image to the training images"
            )
    return Folder(
        root=root,
        about=_about(root, classes),
        class_file=class_file,
        colours=classes.colours,
        train=tuple(train),
        validation=tuple(validation),
        orphans=orphans,
        left_out=left_out,
    )


def _class_file(root: Path) -> Path:
    for name in ("classes.txt", "labelmap.txt"):
        if (root / name).is_file():
            return root / name
    raise ValueError(
        f"{root} has no classes.txt; write one class name per line, the first for mask value 0, or {_CONVERT}"
    )


def _about(root: Path, classes: ClassList) -> DatasetInfo:
    counted = {value: colour for colour, value in classes.colours.items()}
    listed = [counted[value] for value in range(len(classes.names))] if counted else None
    return DatasetInfo(
        name=root.resolve().name,
        classes=classes.names,
        definitions=classes.definitions,
        palette=None if listed is None else np.array(listed, np.uint8),
    )


def _find_masks(root: Path) -> dict[str, Path]:
    """{path below masks/ without the suffix: file}."""
    folder = root / "masks"
    if not folder.is_dir():
        return {}
    masks: dict[str, Path] = {}
    files = images_in(folder, suffixes=IMAGE_SUFFIXES).files
    # PNG first: other files may lie beside them.
    for path in sorted(files, key=lambda path: path.suffix.lower() != ".png"):
        name = _name(path, folder)
        if path.suffix.lower() in LOSSLESS:
            masks.setdefault(name, path)
        elif name not in masks:
            raise ValueError(
                f"{path.relative_to(root)} in {root} is no PNG; save masks as PNG, which keeps every value "
                "(JPEG and GIF do not)"
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
) -> tuple[list[FolderImage], list[FolderImage], Counter[str]]:
    """Training and validation images below images/, and what else is there, by suffix."""
    held_out = [images / name for name in _VALIDATION_FOLDERS if (images / name).is_dir()]
    listed = root / "val.txt"
    if len(held_out) + listed.is_file() != 1:
        has = ", ".join(str(p.relative_to(root)) for p in held_out) or "neither"
        raise ValueError(
            f"{root} must say which images are for validation in one way, either images/val or "
            f"val.txt with one id per line (there is {has}{' and val.txt' * listed.is_file()})"
        )
    everything = images_in(images)
    left_out = everything.left_out.copy()
    train_root = images / "train" if (images / "train").is_dir() else images
    paths = [p for p in images_in(train_root).files if not set(held_out) & set(p.parents)]
    train = _match(root, train_root, paths, masks)
    outside = [p for p in everything.files if not {train_root, *held_out} & set(p.parents)]
    if outside:
        left_out[f"images beside {train_root.relative_to(root)}"] = len(outside)
    if held_out:
        return train, _match(root, held_out[0], images_in(held_out[0]).files, masks), left_out
    wanted = set(read_id_list(listed, (found.id for found in train), key=str(listed)))
    validation = [found for found in train if found.id in wanted]
    return [found for found in train if found.id not in wanted], validation, left_out


def _unlabelled_files(root: Path) -> Found:
    """The images below unlabelled/, if there is such a folder."""
    folder = root / "unlabelled"
    found = images_in(folder) if folder.is_dir() else Found((), Counter())
    if folder.is_dir() and not found.files:
        others = f" ({describe_left_out(found.left_out)})" if found.left_out else ""
        raise ValueError(f"{folder} holds no image{others}; put some there or remove the folder")
    return found


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
