"""Figures of a run: predictions and the labels of training for validation images.

For the first validation images one file `pictures/<step>/<id>.png` each with, side by side and with a legend:
image, ground truth, prediction, and the label maps that the method makes. For the report the same images and
the ones with the lowest scores as single files in `samples/` (evaluation/samples.py), of the newest
evaluation only. The prediction is the evaluated one (sliding windows); the method's labels are made as in
training, from one crop-sized view: the image fitted into the crop, pixels without a label white.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semivl_jax import utils
from semivl_jax.data.examples import EvalExample, EvalExamples
from semivl_jax.evaluation import visualize
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.evaluation.samples import Sample
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.experiment.pseudo_label_quality import ImageLabeller, LabelMaps
from semivl_jax.types import PyTree

FIRST, WORST = "first", "lowest score"
"""Reasons for showing an image; the first ones are the same at every evaluation."""


class Figures:
    """Draws the first validation images and the worst ones."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._experiment, self._folder = experiment, folder

    def samples(
        self,
        labeller: ImageLabeller,
        variables: PyTree,
        examples: EvalExamples,
        evaluator: Evaluator,
        scores: Mapping[str, float],
    ) -> Iterator[Sample]:
        """The first images in their order, then the worst by `scores` (IoU by id), worst first.

        `variables` of the evaluated model lie on devices of this process.
        """
        count = self._experiment.config.evaluation.pictures
        ids = examples.ids
        reasons = dict.fromkeys(ids[:count], FIRST)
        known = (id for id in scores if not math.isnan(scores[id]))
        for id in sorted(known, key=lambda id: scores[id])[:count]:
            reasons.setdefault(id, WORST)
        places = {id: place for place, id in enumerate(ids)}
        chosen = [examples[places[id]] for id in reasons]
        predictions = evaluator.predict(variables, (example.image for example in chosen))
        for example, prediction in zip(chosen, predictions, strict=True):
            score = scores.get(example.id, math.nan)
            yield self._sample(labeller, example, prediction.labels, score, reasons[example.id])

    def draw(
        self, step: int, samples: Iterable[Sample]
    ) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Writes a panel of each of the first images; yields (name, RGB picture)."""
        info = self._experiment.info
        folder = self._folder / f"{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            if sample.chosen != FIRST:
                continue
            labels = {
                "ground truth": sample.truth,
                "prediction": sample.prediction,
                "pseudo-label": sample.pseudo,
                "guidance": sample.guidance,
            }
            labels = {title: label for title, label in labels.items() if label is not None}
            picture = visualize.panels(
                [(sample.image, labels)], classes=info.classes, palette=info.palette
            )
            name = re.sub(r"[^\w.-]+", "_", sample.id)
            with utils.writing(folder):
                Image.fromarray(picture).save(folder / f"{name}.png")
            yield name, picture

    def _sample(
        self,
        labeller: ImageLabeller,
        example: EvalExample,
        prediction: UInt8[np.ndarray, "_ _"],
        score: float,
        reason: str,
    ) -> Sample:
        # In the mode `center_crop` only the centre is predicted, so only that is shown.
        image, truth = (
            _centre(array, prediction.shape) for array in (example.image, example.label)
        )
        made = self._training_labels(labeller, image)
        if truth.shape != prediction.shape:  # the error map compares pixel by pixel
            size = prediction.shape[::-1]
            truth = np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))
        return Sample(
            id=example.id,
            iou=score,
            chosen=reason,
            image=image,
            truth=truth,
            prediction=prediction,
            pseudo=made.get("pseudo"),
            confidence=made.get("confidence"),
            guidance=made.get("guidance"),
        )

    def _training_labels(
        self, labeller: ImageLabeller, image: UInt8[np.ndarray, "_ _ 3"]
    ) -> LabelMaps:
        """The method's label maps, at the size at which training would see the image."""
        factor = self._experiment.crop / max(image.shape[:2])
        rows, cols = (max(1, round(length * factor)) for length in image.shape[:2])
        fitted = Image.fromarray(image).resize((cols, rows), Image.Resampling.BILINEAR)
        return labeller(np.asarray(fitted))


def _centre(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image or a label that is larger than `size` along an axis."""
    top, left = (max(0, (n - m) // 2) for n, m in zip(array.shape, size, strict=False))
    return array[top : top + size[0], left : left + size[1]]
