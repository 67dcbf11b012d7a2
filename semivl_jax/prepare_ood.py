"""Labels a folder of further images with an open-vocabulary model, for methods that train on them.

    python -m semivl_jax.prepare ood web --model clip:clip_vit_b16.safetensors --classes classes.txt
    python -m semivl_jax.prepare ood web --model runs/voc

The images lie below FOLDER/images; FOLDER/masks/NAME.png (8 bits) and FOLDER/classes.txt are written.
Training takes them with --config.data.extra_sources="ood=FOLDER" (docs/methods.md). The same command goes on
where it stopped. Exit codes: 0 all images are labelled, 2 an error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import utils
from semivl_jax.data.find_images import describe_left_out
from semivl_jax.text import class_names


def main(argv: Sequence[str]) -> int:
    """Labels the folder that the arguments name and returns the exit code."""
    options = ood_parser().parse_args(argv)
    stopped = "stopped; the same command goes on from here"
    return utils.run_command(lambda: _label(options), stopped=stopped)


def _label(options: argparse.Namespace) -> int:
    from semivl_jax.inference import files, label_folder
    from semivl_jax.inference.segmenter import Segmenter

    folder = options.folder.expanduser()
    images, left_out = files.find_images([str(folder / "images")], without=folder / "masks")
    if left_out:
        print(describe_left_out(left_out), flush=True)
    segmenter = Segmenter.load(
        options.model, classes=options.classes, definitions=options.definitions
    )
    made = label_folder.write_labels(folder, images, segmenter)
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
