"""Folders of other tools to this project's layout: images/, masks/ and classes.txt, with a report.

In: a folder with the annotations of one tool. Out: a new folder that `tfds_builders.folder_semi` reads.
Photos are copied as they are, masks are written as PNG with indices. Nothing is written where a mask cannot
be used.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from semivl_jax import utils
from semivl_jax.data import images
from semivl_jax.data.class_files import parse_classes
from semivl_jax.data.dataset_info import IGNORE_INDEX
from semivl_jax.data.find_images import images_in
from semivl_jax.data.foreign import coco, cvat_xml, labelme, mask_folders
from semivl_jax.data.foreign.dataset import ForeignDataset, ForeignPhoto, Reading
from semivl_jax.data.text_files import read_lines

FORMATS = ("auto", "voc", "coco", "labelme", "cvat", "colours", "masks")

_MOST_PROBLEMS = 20
_WORKERS = 4  # an outline may need sixteen bytes per pixel of its photo


def convert_folder(
    source: Path,
    out: Path,
    *,
    format: str = "auto",
    reading: Reading | None = None,
    validation: float = 0.2,
) -> str:
    """Writes `out` and returns the report.

    `validation` is the share of the labelled photos that become validation photos, drawn with seed 0, where
    the folder has none.

    Raises:
      ValueError: no such folder, `out` is not empty, annotations of no or of several tools, photos or masks
        that cannot be used (all are listed).
    """
    _check_folders(source, out)
    try:
        dataset = read(source, format, reading or Reading())
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{source} holds annotations that lack a field or have one of a wrong kind ({error!r}); "
            "export them again"
        ) from error
    if len(dataset.names) > IGNORE_INDEX:
        raise ValueError(
            f"{source} has {len(dataset.names)} classes, a mask can hold {IGNORE_INDEX}"
        )
    lines = dataset.class_lines(str(source))
    parts, notes = _parts(dataset, validation)
    with utils.replace_folder(out) as folder:
        pixels, turned, problems = _write_all(parts, folder)
        if not problems and any(len(dataset.names) <= v < IGNORE_INDEX for v in pixels):
            problems.append(
                f"masks have the values {', '.join(map(str, sorted(pixels)))}, but the class list names "
                f"{len(dataset.names)} classes, 0 to {len(dataset.names) - 1}; correct it"
            )
        if problems:
            shutil.rmtree(folder)
            more = len(problems) - _MOST_PROBLEMS
            listed = "; ".join(problems[:_MOST_PROBLEMS]) + (
                f"; and {more} more" if more > 0 else ""
            )
            raise ValueError(f"nothing was written, {len(problems)} problems: {listed}")
        utils.write_text(folder / "classes.txt", "\n".join([*lines, ""]))
    if turned:
        notes.append(f"{turned} masks were turned like their photos by the photos' EXIF data")
    return _report(source, out, dataset, parts, notes, pixels)


def _check_folders(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; correct the path")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--out={out} lies inside {source}; choose a folder outside")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is not empty; choose another folder")


def read(source: Path, format: str, reading: Reading) -> ForeignDataset:
    """The photos of a folder in a format, or in the one that is found ("auto").

    Raises:
      ValueError: annotations of no or of several tools, or files that cannot be read.
    """
    found = _find_annotations(source, format)
    has_colours = _has_colours(source, reading)
    if format == "auto":
        kinds = [kind for kind in ("coco", "labelme", "cvat") if found[kind]]
        if len(kinds) > 1:
            raise ValueError(
                f"{source} holds annotations of {' and '.join(kinds)} ({found[kinds[0]][0]}, "
                f"{found[kinds[1]][0]}); choose with --from"
            )
        plain = "colours" if has_colours else "masks"
        plain = "voc" if (source / "JPEGImages").is_dir() else plain
        plain = "cvat" if (source / "labelmap.txt").is_file() else plain
        format = kinds[0] if kinds else plain
    if format in ("coco", "labelme") and not found[format]:
        raise ValueError(f"{source} holds no JSON file of {format}; choose another --from")
    if reading.classes and (format == "coco" or (format == "cvat" and found["cvat"])):
        raise ValueError(
            f"--classes={reading.classes}: annotations of {format} name their own classes; leave it out"
        )
    if format == "coco":
        return coco.read(source, found["coco"], reading)
    if format == "labelme":
        return labelme.read(source, found["labelme"], reading)
    if format == "cvat" and found["cvat"]:
        if len(found["cvat"]) > 1:
            files = " and ".join(map(str, found["cvat"][:2]))
            raise ValueError(f"{source} holds {files}; convert them one by one")
        return cvat_xml.read(source, found["cvat"][0], reading)
    if format == "colours" and not has_colours:
        raise ValueError(
            f"{mask_folders.find_class_file(source, reading)} names no colours; write name #RRGGBB"
        )
    return mask_folders.read(source, reading, format=format)


def _find_annotations(source: Path, format: str) -> Mapping[str, list[Path]]:
    found: dict[str, list[Path]] = {"coco": [], "labelme": [], "cvat": []}
    for path in images_in(source, suffixes=(".json",)).files:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            if format in ("auto", "coco", "labelme"):
                raise ValueError(
                    f"{path} cannot be read as JSON ({error}); export it again or remove it"
                ) from error
            continue
        if coco.is_coco(content):
            found["coco"].append(path)
        elif labelme.is_labelme(content):
            found["labelme"].append(path)
    xml = images_in(source, suffixes=(".xml",)).files
    found["cvat"] = [path for path in xml if path.name == "annotations.xml"]
    return found


def _has_colours(source: Path, reading: Reading) -> bool:
    try:
        path = mask_folders.find_class_file(source, reading)
    except ValueError:
        return False
    return bool(parse_classes(read_lines(path), where=str(path)).colours)


def _parts(
    dataset: ForeignDataset, validation: float
) -> tuple[list[tuple[ForeignPhoto, str]], list[str]]:
    """Photos with the folder that they go to, "train" or "val", and notes."""
    notes = []
    photos = [photo for photo in dataset.photos if photo.part != "test"]
    if len(photos) < len(dataset.photos):
        notes.append(f"left out: {len(dataset.photos) - len(photos)} photos of a test part")
    bare = [photo for photo in photos if photo.part == "val" and not photo.mask]
    if bare:
        notes.append(f"left out: {len(bare)} validation photos without a mask")
    parts = [
        (photo, "val" if photo.part == "val" else "train") for photo in photos if photo not in bare
    ]
    if all(part == "train" for _, part in parts):
        labelled = sorted(photo.id for photo in photos if photo.mask)
        random.Random(0).shuffle(labelled)
        held_out = set(labelled[: max(1, round(validation * len(labelled)))])
        parts = [(photo, "val" if photo.id in held_out else part) for photo, part in parts]
        notes.append(
            f"validation: {len(held_out)} of {len(labelled)} labelled photos, drawn with seed 0 "
            "(--validation=SHARE)"
        )
    _check_once(parts)
    if not any(photo.mask and part == "train" for photo, part in parts):
        raise ValueError("no training photo would have a mask; annotate more photos")
    return parts, notes


def _check_once(parts: Sequence[tuple[ForeignPhoto, str]]) -> None:
    """ValueError for a photo of both parts, and for two photos of one name."""
    by_file: dict[Path, tuple[ForeignPhoto, str]] = {}
    by_name: dict[tuple[str, str], ForeignPhoto] = {}
    for photo, part in parts:
        other, other_part = by_file.setdefault(photo.path.resolve(), (photo, part))
        if part != other_part:
            raise ValueError(
                f"{photo.path} is for training and for validation ({other.where or other.path}; "
                f"{photo.where or photo.path}); remove it from one of them"
            )
        same = by_name.setdefault((part, photo.id.lower()), photo)
        if same is photo:
            continue
        if same.path.resolve() == photo.path.resolve():
            raise ValueError(
                f"{photo.path} is annotated in {same.where} and in {photo.where}; remove one of them"
            )
        raise ValueError(
            f"{same.path} and {photo.path} would both be called {photo.id!r}; rename one of them"
        )


def _write_all(
    parts: Sequence[tuple[ForeignPhoto, str]], folder: Path
) -> tuple[Counter[int], int, list[str]]:
    """Writes photos and masks: (pixels by value, number of turned masks, what is wrong)."""
    pixels: Counter[int] = Counter()
    turned, problems = 0, []
    jobs = [(photo, part, folder) for photo, part in parts]
    results = utils.ordered_map(_write, jobs, workers=_WORKERS)
    with utils.Progress("converting", total=len(jobs), unit="photos") as shown:
        for (photo, _), result in zip(parts, results, strict=True):
            shown.update()
            if isinstance(result, str):
                problems.append(f"{photo.where or photo.path}: {result}")
            else:
                pixels.update(result[0])
                turned += result[1]
    return pixels, turned, problems


def _write(job: tuple[ForeignPhoto, str, Path]) -> tuple[Counter[int], bool] | str:
    """Copies a photo and draws its mask: (pixels by value, whether the mask was turned), or what is wrong."""
    photo, part, folder = job
    try:
        data = photo.path.read_bytes()
        pixels = images.decode_image(data)
        images.check_size(pixels)
        name = f"{photo.id}{photo.path.suffix.lower()}"
        shutil.copy2(photo.path, _target(folder / "images" / part, name))
        if photo.mask is None:
            return Counter(), False
        label = photo.mask()
        stored, orientation = images.stored_size(data)
        turned = orientation > 1 and label.shape == stored and stored != pixels.shape[:2]
        if turned:
            label = _turned(label, orientation)
        images.check_pair(pixels, label)
        Image.fromarray(label).save(_target(folder / "masks" / part, f"{photo.id}.png"))
    except Exception as error:  # annotations can be wrong in every way
        if isinstance(error, ValueError | OSError):
            return str(error)
        return f"the annotation is damaged ({error!r}); correct it"
    values, counts = np.unique(label, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True))), turned


def _target(folder: Path, name: str) -> Path:
    """A file to write below a folder; ValueError if it lies elsewhere."""
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{target} lies outside {folder}; rename the photo")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _turned(label: np.ndarray, orientation: int) -> np.ndarray:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(label).save(buffer, "png", exif=exif)
    with Image.open(buffer) as stored:
        return np.asarray(ImageOps.exif_transpose(stored))


def _report(
    source: Path,
    out: Path,
    dataset: ForeignDataset,
    parts: Sequence[tuple[ForeignPhoto, str]],
    notes: Sequence[str],
    pixels: Counter[int],
) -> str:
    held_out = sum(part == "val" for _, part in parts)
    labelled = sum(photo.mask is not None and part == "train" for photo, part in parts)
    total = max(pixels.total(), 1)
    width = max(map(len, dataset.names))
    lines = [
        f"{source}: read as {dataset.format}",
        *(f"  {note}" for note in (*dataset.notes, *notes)),
        f"{len(parts) - held_out} training photos, {labelled} of them with a mask, {held_out} validation "
        "photos",
        *(
            f"  {value:3d} {name:{width}s} {100 * pixels[value] / total:6.2f} % of the pixels"
            for value, name in enumerate(dataset.names)
        ),
        f"  {IGNORE_INDEX} {'(ignored)':{width}s} {100 * pixels[IGNORE_INDEX] / total:6.2f} %",
        f"written to {out}",
        f"train with --config=configs/folder.py:{out}",
    ]
    return "\n".join(lines)
