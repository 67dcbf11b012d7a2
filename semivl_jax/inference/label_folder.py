"""Labels a folder of further images with a model, for methods that train on them (`prepare ood`).

    python -m semivl_jax.prepare ood web --model clip:clip_vit_b16 --classes classes.txt
    python -m semivl_jax.prepare ood web --model runs/voc

In: images below FOLDER/images. Out: FOLDER/masks/NAME.png (8-bit class indices with palette), classes.txt,
and val.txt where the folder does not say which images are for validation, because it needs one. Training
takes them with --config.data.extra_sources="ood=FOLDER" (docs/methods.md). Images that have a mask (PNG, TIFF
or BMP) are left as they are, so the same command goes on where it stopped. Exit codes: 0 all images are
labelled, 2 an error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semivl_jax import utils
from semivl_jax.data.class_files import parse_classes
from semivl_jax.data.find_images import describe_left_out, images_in
from semivl_jax.data.label_files import LOSSLESS
from semivl_jax.data.text_files import read_lines
from semivl_jax.inference import files
from semivl_jax.text import class_names

if TYPE_CHECKING:
    from semivl_jax.inference.segmenter import Segmenter


def main(argv: Sequence[str]) -> int:
    """Labels the folder that the arguments name and returns the exit code."""
    options = ood_parser().parse_args(argv)
    stopped = "stopped; the same command goes on from here"
    return utils.run_command(lambda: _label(options), stopped=stopped)


def _label(options: argparse.Namespace) -> int:
    from semivl_jax.inference.segmenter import Segmenter  # late, so that --help is fast

    folder = utils.user_path(options.folder)
    images, left_out = files.find_images([str(folder / "images")], without=folder / "masks")
    if left_out:
        print(describe_left_out(left_out), flush=True)
    segmenter = Segmenter.load(
        options.model, classes=options.classes, definitions=options.definitions
    )
    made = write_labels(folder, images, segmenter)
    print(
        f"{made} of {len(images)} images labelled, the others were: {folder / 'masks'}", flush=True
    )
    return 0


def ood_parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.prepare ood", __doc__)
    add = made.add_argument
    add("folder", type=Path, help="folder that has images/")
    add("--model", required=True, metavar="DIR|hf://USER/REPO|clip:WEIGHTS",
        help="what labels the images: a run, a model on the hub, or CLIP weights")  # fmt: skip
    add("--classes", metavar="FILE|a,b,c",
        help="the classes of the training that will use the labels; lines of FILE: name, or name: "
        "concept, …; default: those of the model")  # fmt: skip
    add("--definitions", nargs="?", const="concept", choices=class_names.MODES[1:],
        help="describe classes by their concepts: the best of them (concept, if nothing follows), or "
        "their mean (concept_average)")  # fmt: skip
    return made


def write_labels(folder: Path, images: Sequence[files.ImageFile], segmenter: Segmenter) -> int:
    """Labels the images that have no mask yet and returns how many these were.

    Raises:
      ValueError: the folder's classes are others, or an image cannot be read.
    """
    from semivl_jax.inference.segmenter import as_rgb

    path = folder / "classes.txt"
    if path.exists():
        if parse_classes(read_lines(path), where=str(path)).names != segmenter.names:
            raise ValueError(
                f"{path} has other classes than the model ({', '.join(segmenter.names[:4])}, …); give them "
                "with --classes, or delete classes.txt and masks/"
            )
    else:
        utils.write_text(path, "".join(f"{name}\n" for name in segmenter.names))
    validation = (folder / name for name in ("val.txt", "images/val", "images/validation"))
    if not any(path.exists() for path in validation):
        utils.write_text(folder / "val.txt", images[-1].name.removeprefix("train/") + "\n")
    masks = _masks(folder)
    missing = [image for image in images if not masks & _mask_names(image)]
    pixels = utils.ordered_map(lambda image: as_rgb(image.path), missing, workers=2)
    with utils.Progress("labelling", total=len(missing), unit="images") as progress:
        found = segmenter.segment(pixels, scores=False)
        for image, segmentation in zip(missing, found, strict=True):
            with utils.atomic_write(_mask(folder, image)) as temporary:
                segmentation.save(temporary)
            progress.update()
    return len(missing)


def _masks(folder: Path) -> set[str]:
    """The masks that a training would find: their paths below masks/ without suffix."""
    found = images_in(folder / "masks", suffixes=LOSSLESS).files
    paths = (path.relative_to(folder / "masks").with_suffix("").as_posix() for path in found)
    return {unicodedata.normalize("NFC", path) for path in paths}


def _mask_names(image: files.ImageFile) -> set[str]:
    """What an image's mask may be called: like the image, with the folder of its part or without it."""
    name = unicodedata.normalize("NFC", Path(image.name).as_posix())
    part, _, rest = name.partition("/")
    return {name, rest} if part in ("train", "val", "validation") else {name}


def _mask(folder: Path, image: files.ImageFile) -> Path:
    return folder / "masks" / f"{image.name}.png"
