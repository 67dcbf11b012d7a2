"""How good the pseudo-labels of a finished run are, class by class.

    python -m benchmarks.pseudo_labels WORKDIR [--images=200]

Makes the teacher's pseudo-labels for training images whose masks were held back, as the training step makes
them (crops, confidence threshold), and compares them with those masks: share of the pixels of each true
class that are confident, and how many of these are right. Prints a table (percent).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from semivl_jax.experiment import experiment as experiment_lib
from semivl_jax.experiment.pseudo_label_quality import HeldBack
from semivl_jax.train import sharding
from semivl_jax.train.checkpoint import Checkpoints

_IMAGES = flags.DEFINE_integer("images", 200, "Unlabelled training images to look at.")


def main(argv: list[str]) -> None:
    """Prints the table for the run in argv[1]."""
    if len(argv) != 2:
        raise app.UsageError("name one workdir of a finished run")
    workdir = Path(argv[1])
    if not (workdir / "config.json").is_file():
        raise app.UsageError(f"{workdir} holds no run; name a workdir of main")
    config = ConfigDict(json.loads((workdir / "config.json").read_text(encoding="utf8")))
    data = experiment_lib.open_data(config)
    built = experiment_lib.build(
        config, data.info, images_per_epoch=len(data.split.unlabelled) or len(data.split.labelled)
    )
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    state, _ = checkpoints.restore(built.abstract_state())
    checkpoints.close()
    teacher = sharding.local(built.mesh, state.teacher())
    quality = HeldBack(built, data, images=_IMAGES.value).score(teacher)
    if quality is None:
        raise app.UsageError(
            f"{workdir} has no unlabelled training image with a mask, or no teacher"
        )
    pixels, confident = quality.pseudo.sum(1), quality.pseudo[:, :-1].sum(1)
    right = np.diagonal(quality.pseudo)
    width = max(map(len, data.info.classes))
    print(f"{'class':<{width}}  confident   right of these")
    for name, row in zip(data.info.classes, np.stack([pixels, confident, right], 1), strict=True):
        share, accuracy = row[1] / max(row[0], 1), row[2] / max(row[1], 1)
        print(f"{name:<{width}}  {100 * share:8.1f}  {100 * accuracy:8.1f}")


if __name__ == "__main__":
    app.run(main)
