"""Pictures of a run: what the model, its teacher and the frozen CLIP see in validation images.

For every drawn image one file `pictures/<step>/<id>.png` with, side by side and the palette and names
below: image, ground truth, prediction, pseudo-label, guidance label. The prediction is the evaluated one
(sliding windows); pseudo-label and guidance are made as in training, from one crop-sized view: the image
fitted into the crop, pixels below the threshold left white.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8
from PIL import Image

from semivl_jax.data.examples import EvalExample
from semivl_jax.evaluation import pictures
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.experiment import Experiment
from semivl_jax.models import normalization
from semivl_jax.train import sharding
from semivl_jax.train import step as step_lib
from semivl_jax.train.state import Constants, TrainState
from semivl_jax.types import IGNORE_INDEX


class Gallery:
    """Draws the first images of the validation part."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._experiment, self._folder = experiment, folder
        self._targets = jax.jit(functools.partial(_targets, experiment.parts))

    def draw(
        self, state: TrainState, step: int, examples: Iterable[EvalExample], evaluator: Evaluator
    ) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Writes the pictures of this step; yields (name, RGB picture)."""
        info, count = self._experiment.info, self._experiment.config.evaluation.pictures
        chosen = list(itertools.islice(examples, count))
        variables = state.teacher()
        predictions = evaluator.predict(variables, (example.image for example in chosen))
        folder = self._folder / f"{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for example, prediction in zip(chosen, predictions, strict=True):
            columns = [
                ("image", example.image),
                ("ground truth", pictures.colorize(example.label, info.palette)),
                ("prediction", pictures.colorize(prediction, info.palette)),
            ]
            for title, label in self._training_labels(state, example.image).items():
                columns.append((title, pictures.colorize(label, info.palette)))
            picture = pictures.panel(columns, classes=info.classes, palette=info.palette)
            name = re.sub(r"[^\w.-]+", "_", example.id)
            Image.fromarray(picture).save(folder / f"{name}.png")
            yield name, picture

    def _training_labels(
        self, state: TrainState, image: UInt8[np.ndarray, "_ _ 3"]
    ) -> dict[str, UInt8[np.ndarray, "_ _"]]:
        """Pseudo-label and guidance label, at the size at which training would see the image."""
        if not self._experiment.parts.recipe.semi_supervised:
            return {}
        side = self._experiment.crop
        factor = side / max(image.shape[:2])
        rows, cols = (max(1, round(length * factor)) for length in image.shape[:2])
        fitted = Image.fromarray(image).resize((cols, rows), Image.Resampling.BILINEAR)
        canvas = np.zeros((1, side, side, 3), np.uint8)
        canvas[0, :rows, :cols] = fitted
        place = sharding.replicated(self._experiment.mesh)
        labels = self._targets(self._experiment.constants, state, jax.device_put(canvas, place))
        # Sorted names would put guidance first; it is the last column.
        titles = [title for title in ("pseudo-label", "guidance") if title in labels]
        host = jax.device_get(labels)
        return {title: host[title][0, :rows, :cols].astype(np.uint8) for title in titles}


def _targets(
    parts: step_lib.Parts, constants: Constants, state: TrainState, image: UInt8[Array, "1 s s 3"]
) -> dict[str, Int32[Array, "1 s s"]]:
    """Labels that training would use for this view, 255 where it would use none."""
    recipe = parts.recipe
    view = normalization.normalize(image)
    pseudo = step_lib.pseudo_label(parts, constants, state.teacher(), view)
    sure = pseudo.confidence >= recipe.confidence_threshold
    labels = {"pseudo-label": jnp.where(sure, pseudo.label, IGNORE_INDEX)}
    if recipe.guidance:
        ignore = jnp.zeros(view.shape[:3], bool)
        labels["guidance"] = step_lib.guidance_label(parts, constants, view, ignore)
    return labels
