"""Photos and mask files in folders: Pascal VOC, CVAT's masks, Cityscapes, pairs of one name.

A file is a mask if one of its folders is called like masks are, or its name ends like theirs do; it belongs
to the photo with the same name otherwise. Masks hold indices, or the colours of the class list.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from semivl_jax.data import label_files
from semivl_jax.data.class_files import ClassList, parse_classes
from semivl_jax.data.find_images import describe_left_out, images_in
from semivl_jax.data.foreign.dataset import (
    PHOTO_FOLDERS,
    ForeignDataset,
    ForeignPhoto,
    Reading,
    counted,
    id_of,
    part_of,
)
from semivl_jax.data.id_lists import find_id
from semivl_jax.data.text_files import read_lines

CLASS_FILES = (
    "classes.txt", "labelmap.txt", "class_names.txt", "labels.txt", "label_colors.txt", "class_dict.csv",
    "_classes.csv", "train/_classes.csv",
)  # fmt: skip
"""Class lists of this project, CVAT, LabelMe, CamVid and Roboflow."""
MASK_FOLDERS = (
    "segmentationclass", "segmentationclasspng", "segmentationclassaug", "segmentationclassraw", "masks",
    "mask", "labels", "label", "annotations", "annotation", "gt", "gtfine", "gtcoarse", "groundtruth",
    "ground_truth", "segmentation", "segmentations", "trainannot", "valannot", "testannot", "train_labels",
    "val_labels", "test_labels", "train_masks", "val_masks", "test_masks", "seg", "labels_png", "ann_dir",
)  # fmt: skip
"""Names of folders of masks, in lower case."""
MASK_SUFFIXES = (
    "_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtCoarse_labelTrainIds", "_gtCoarse_labelIds",
    "_labelTrainIds", "_labelIds", "_mask", "-mask", "_masks", "_label", "_labels", "-label", "_gt",
    "_seg", "_segmentation", "_annotation", "_L",
)  # fmt: skip
PHOTO_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat", "-image")
OTHER_SUFFIXES = (
    "_gtFine_color", "_gtFine_instanceIds", "_gtFine_instanceTrainIds", "_gtCoarse_color",
    "_gtCoarse_instanceIds", "_color", "_instanceIds", "_viz", "_overlay",
)  # fmt: skip
"""Ends of names: of masks, of photos, and of pictures that are neither."""
_IGNORED_FOLDERS = (
    "segmentationobject",
    "segmentationclassvisualization",
    "visualization",
    "overlays",
)


@dataclasses.dataclass(frozen=True)
class _File:
    """A picture: its path, its id, its part, and the end of its name that says what it is."""

    path: Path
    id: str
    part: str
    suffix: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells photos apart."""
        return self.part, self.id


def read(root: Path, reading: Reading, *, format: str) -> ForeignDataset:
    """The photos and masks below a folder; photos without a mask are unlabelled.

    Raises:
      ValueError: no class list, no photos or masks, two masks for a photo or two photos for an id, masks none
        of which belongs to a photo.
    """
    class_file = find_class_file(root, reading)
    classes = parse_classes(read_lines(class_file), where=str(class_file))
    found = images_in(root)
    photos, masks, others, pairs = _divide(root, found.files)
    matched = _match(_by_key(photos), masks, reading)
    parts = _listed_parts(root, [photo.id for photo in photos])
    notes = [f"classes: {class_file}" + " with colours" * bool(classes.colours)]
    suffixes = Counter(mask.suffix for mask in matched.values() if mask.suffix)
    notes += (
        [f"masks are called like their photos and then: {counted(suffixes)}"] if suffixes else []
    )
    notes += (
        [f"{pairs} pairs of one name: the JPEG is the photo, the other its mask"] if pairs else []
    )
    orphans = len(masks) - len(matched)
    notes += [f"left out: {orphans} masks that belong to no photo"] if orphans else []
    notes += [f"left out: pictures that are neither: {counted(others)}"] if others else []
    notes += [describe_left_out(found.left_out)] if found.left_out else []
    return ForeignDataset(
        format,
        classes.names,
        tuple(_foreign(photo, matched.get(photo.key), classes, parts) for photo in photos),
        tuple(notes),
        classes.definitions,
    )


def find_class_file(root: Path, reading: Reading) -> Path:
    """The class list of a folder; ValueError if there is none."""
    files = (reading.classes,) if reading.classes else [root / name for name in CLASS_FILES]
    for path in files:
        if path.is_file():
            return path
    raise ValueError(
        f"{reading.classes or root} has no list of classes; write one name per line in the order of the mask "
        "values, with colours for colour masks (name #RRGGBB), and give it with --classes=FILE"
    )


def _foreign(
    photo: _File, mask: _File | None, classes: ClassList, parts: Mapping[str, str]
) -> ForeignPhoto:
    return ForeignPhoto(
        id=photo.id,
        path=photo.path,
        part=photo.part or parts.get(photo.id, ""),
        mask=None if mask is None else functools.partial(_decode, mask.path, classes),
        where="" if mask is None else str(mask.path),
    )


def _decode(path: Path, classes: ClassList) -> np.ndarray:
    data = path.read_bytes()
    if classes.colours:
        return label_files.decode_colours(data, classes.colours)
    return label_files.decode_label(data)


def _divide(
    root: Path, files: Sequence[Path]
) -> tuple[list[_File], list[_File], Counter[str], int]:
    """Photos, masks, the suffixes or folders of pictures that are neither, and pairs of one name."""
    photos, masks, by_name = [], [], defaultdict(list)
    others: Counter[str] = Counter()
    paired = 0
    for path in files:
        relative = path.relative_to(root)
        folders = [name.lower() for name in relative.parent.parts]
        other = next((s for s in OTHER_SUFFIXES if path.stem.endswith(s)), "")
        ignored = next((name for name in folders if name in _IGNORED_FOLDERS), "")
        if other or ignored:
            others[other or ignored] += 1
            continue
        suffix = next((s for s in MASK_SUFFIXES if path.stem.endswith(s)), "")
        if set(folders) & set(MASK_FOLDERS) or (suffix and not set(folders) & set(PHOTO_FOLDERS)):
            masks.append(_file(path, relative, suffix))
        else:
            plain = next((s for s in PHOTO_SUFFIXES if path.stem.endswith(s)), "")
            photo = _file(path, relative, plain)
            by_name[photo.key].append(photo)
    for same in by_name.values():
        # A JPEG and a lossless file of one name: the photo and its mask.
        lossless = [file for file in same if file.path.suffix.lower() in label_files.LOSSLESS]
        if len(same) == 2 and len(lossless) == 1:
            masks += lossless
            same.remove(lossless[0])
            paired += 1
        photos += same
    for file in masks:
        if file.path.suffix.lower() not in label_files.LOSSLESS:
            raise ValueError(f"mask {file.path} is no PNG; JPEG and others change its values")
    if not photos or not masks:
        raise ValueError(
            f"{root} has {len(photos)} photos and {len(masks)} masks; name the folders images/ and masks/"
        )
    return photos, masks, others, paired


def _file(path: Path, relative: Path, suffix: str) -> _File:
    kept = [name for name in relative.parent.parts if name.lower() not in MASK_FOLDERS]
    id = id_of(Path(*kept, relative.name)).removesuffix(suffix)
    return _File(path, id, part_of(relative.parent), suffix)


def _by_key(photos: Sequence[_File]) -> dict[tuple[str, str], _File]:
    found: dict[tuple[str, str], _File] = {}
    for photo in photos:
        other = found.setdefault(photo.key, photo)
        if other is not photo:
            raise ValueError(
                f"{photo.path} and {other.path} would have the same id {photo.id!r}; rename one"
            )
    return found


def _match(
    photos: Mapping[tuple[str, str], _File], masks: Sequence[_File], reading: Reading
) -> dict[tuple[str, str], _File]:
    """{key of a photo: its mask}."""
    by_id: dict[str, list[_File]] = defaultdict(list)
    for photo in photos.values():
        by_id[photo.id].append(photo)
    found: dict[tuple[str, str], list[_File]] = defaultdict(list)
    for mask in masks:
        if reading.mask_suffix and mask.suffix != reading.mask_suffix:
            continue
        # The end may belong to the name.
        for name in (mask.id, mask.id + mask.suffix):
            same = [p for p in by_id[name] if p.part == mask.part or not (p.part and mask.part)]
            if len(same) == 1:
                found[same[0].key].append(mask)
                break
    several = [same for same in found.values() if len(same) > 1]
    if several:
        one, other = several[0][:2]
        raise ValueError(
            f"{len(several)} photos have several masks, such as {one.path} and {other.path}; choose with "
            f"--mask_suffix, for example --mask_suffix={one.suffix or '_mask'}"
        )
    if not found:
        first = next(iter(photos.values()))
        raise ValueError(
            f"no mask belongs to a photo: {masks[0].path} would belong to a photo {masks[0].id!r}, and "
            f"{first.path} to a mask {first.id!r}"
        )
    return {key: same[0] for key, same in found.items()}


def _listed_parts(root: Path, ids: Sequence[str]) -> dict[str, str]:
    """Parts of Pascal VOC's lists, ImageSets/Segmentation/{train,val,test}.txt."""
    parts: dict[str, str] = {}
    for name in ("train", "val", "test"):
        for folder in ("ImageSets/Segmentation", "."):
            path = root / folder / f"{name}.txt"
            if not path.is_file():
                continue
            for number, line in enumerate(map(str.strip, read_lines(path)), start=1):
                found = find_id(line, ids) if line else ""
                if found is None:
                    raise ValueError(f"{path} line {number} names {line!r}, which is no photo")
                if found and parts.setdefault(found, name) != name:
                    raise ValueError(f"{path} line {number}: {found} is in {parts[found]}.txt, too")
            break
    return parts
