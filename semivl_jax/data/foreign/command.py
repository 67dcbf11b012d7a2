"""Converts annotated photos of another tool into the folder layout of a training (docs/own_data.md).

    python -m semivl_jax.prepare folder voc_export --out=photos
    python -m semivl_jax.prepare folder labelme --from=labelme --classes=labels.txt --out=photos

Reads Pascal VOC, COCO (outlines and run lengths), LabelMe, CVAT (annotations.xml, or masks with
labelmap.txt), colour masks with a colour per class, and masks with indices (Cityscapes' and other names).
Prints what was found; masks that cannot be used are listed, and nothing is written. Exit codes: 0 written,
2 an error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import utils
from semivl_jax.data.dataset_info import IGNORE_INDEX
from semivl_jax.data.foreign import convert
from semivl_jax.data.foreign.dataset import Reading


def main(argv: Sequence[str]) -> int:
    """Converts the folder that the arguments name and returns the exit code."""
    options = folder_parser().parse_args(argv)
    return utils.run_command(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> int:
    reading = Reading(
        classes=options.classes and utils.user_path(options.classes),
        rest=0 if options.rest == "background" else IGNORE_INDEX,
        mask_suffix=options.mask_suffix,
    )
    report = convert.convert_folder(
        utils.user_path(options.source),
        utils.user_path(options.out),
        format=options.format,
        reading=reading,
        validation=options.validation,
    )
    print(report, flush=True)
    return 0


def folder_parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.prepare folder", __doc__)
    add = made.add_argument
    add("source", type=Path, help="folder with the photos and annotations")
    add("--out", type=Path, required=True, help="new folder to write")
    add("--from", dest="format", choices=convert.FORMATS, default="auto",
        help="what the folder holds; default: %(default)s, what is found")  # fmt: skip
    add("--classes", type=Path, help="class list in the order of the values; default: the folder's")
    add("--rest", choices=("background", "ignore"), default="background",
        help="what lies outside all outlines (COCO, LabelMe, CVAT): the class background, value 0, or "
        "ignored; default: %(default)s")  # fmt: skip
    add("--mask_suffix", default="", help="end of the masks' names where photos have several masks")
    add("--validation", type=_share, default=0.2, metavar="SHARE",
        help="share of the labelled photos for validation, where the folder has no validation part; "
        "default: %(default)s")  # fmt: skip
    return made


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
