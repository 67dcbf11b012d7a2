"""Quality of the pseudo-labels of a finished run, class by class.

    python -m benchmarks.pseudo_labels WORKDIR [--images=200]

Makes pseudo-labels as in the training step for unlabelled training images whose masks exist, and compares
them with the masks. Prints, for every true class, the percentage of its pixels with a confident label, and
the percentage of these labels that is right.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from semivl_jax import utils
from semivl_jax.experiment import data as data_lib
from semivl_jax.experiment import experiment as experiment_lib
from semivl_jax.experiment import workdir
from semivl_jax.experiment.pseudo_label_quality import ImageLabeller, PseudoLabelQuality
from semivl_jax.train import sharding
from semivl_jax.train.checkpoint import Checkpoints


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.pseudo_labels", __doc__)
    command.add_argument("workdir", type=Path, help="workdir of a finished run")
    command.add_argument("--images", type=int, default=200, help="unlabelled images to look at")
    return command


def main() -> None:
    """Prints the table."""
    options = parser().parse_args()
    try:
        config = workdir.read(options.workdir)
    except ValueError as error:
        sys.exit(f"error: {error}")
    data = data_lib.open_data(config)
    images = len(data.split.unlabelled) or len(data.split.labelled)
    experiment = experiment_lib.build(config, data.info, images_per_epoch=images)
    checkpoints = Checkpoints(options.workdir / "checkpoints", keep=1, read_only=True)
    state, _ = checkpoints.restore(experiment.abstract_state())
    checkpoints.close()
    labeller = ImageLabeller(experiment, sharding.local(experiment.mesh, state))
    quality = PseudoLabelQuality(experiment, data, images=options.images).score(labeller)
    if "pseudo" not in quality or not quality["pseudo"][:-1].any():
        sys.exit(
            f"error: {options.workdir}: no unlabelled image has a mask, or there is no teacher"
        )
    counts = quality["pseudo"][:-1]
    pixels, confident = counts.sum(1), counts[:, :-1].sum(1)
    share = 100 * confident / np.maximum(pixels, 1)
    right = 100 * np.diagonal(counts) / np.maximum(confident, 1)
    width = max(map(len, data.info.classes))
    print(f"{'class':<{width}}  confident   right of these")
    for name, *numbers in zip(data.info.classes, share, right, strict=True):
        print(f"{name:<{width}}  {numbers[0]:8.1f}  {numbers[1]:8.1f}")


if __name__ == "__main__":
    main()
