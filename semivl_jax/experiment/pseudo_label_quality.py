"""What training would ask of an image, and how right that is where the truth is known.

In: uint8 RGB images [h, w, 3] on the host. Out: the teacher's pseudo-label, its confidence and the frozen
CLIP's guidance label, made as in the training step; or counts int64 [n, n + 1] of held-back pixels, a row
per true class and a column per label, the last one for pixels that training would leave out.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Int64, UInt8

from semivl_jax.data import images as images_lib
from semivl_jax.experiment.experiment import Data, Experiment
from semivl_jax.models import normalization
from semivl_jax.train import distributed
from semivl_jax.train import step as step_lib
from semivl_jax.train.state import Constants
from semivl_jax.types import IGNORE_INDEX, PyTree

Labels = UInt8[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """Labels of one image, 255 where training would use none; `guidance` None where it is off."""

    pseudo: Labels
    confidence: Float32[np.ndarray, "h w"]
    guidance: Labels | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """How right the labels are: counts by true class and label, the last column: no label."""

    pseudo: Int64[np.ndarray, "n n+1"]
    guidance: Int64[np.ndarray, "n n+1"] | None

    def scalars(self) -> dict[str, float]:
        """In percent: pixels that get a label, and the share of these that is right (NaN of none)."""
        counts = {"pseudo": self.pseudo, "guidance": self.guidance}
        values = {}
        for name, count in counts.items():
            if count is None:
                continue
            labelled = count[:, :-1].sum()
            right = float(np.trace(count) / labelled) if labelled else float("nan")
            values[f"eval/{name}_labelled"] = 100 * float(labelled / max(count.sum(), 1))
            values[f"eval/{name}_right"] = 100 * right
        return values


class TargetMaker:
    """Makes the targets of images no larger than the training crop, one compilation for all."""

    def __init__(self, experiment: Experiment) -> None:
        """ValueError where the recipe has no unlabelled images, so that there is no such target."""
        if not experiment.parts.recipe.semi_supervised:
            raise ValueError("method.semi_supervised = False: a run without pseudo-labels")
        self._experiment = experiment
        self._make = jax.jit(functools.partial(_targets, experiment.parts))

    def __call__(self, teacher: PyTree, image: UInt8[np.ndarray, "h w 3"]) -> Targets:
        """Targets of the image, which is padded to the crop right and below as in training.

        `teacher` are its variables on devices of this process.
        """
        rows, cols = image.shape[:2]
        side = self._experiment.crop
        canvas = np.zeros((1, side, side, 3), np.uint8)
        canvas[0, :rows, :cols] = image
        made = self._make(self._experiment.local_constants, teacher, canvas)
        cut = {name: leaf[0, :rows, :cols] for name, leaf in jax.device_get(made).items()}
        guidance = cut.get("guidance")
        return Targets(
            pseudo=cut["pseudo"].astype(np.uint8),
            confidence=cut["confidence"],
            guidance=None if guidance is None else guidance.astype(np.uint8),
        )


class HeldBack:
    """Training images that the run treats as unlabelled although their masks exist."""

    def __init__(self, experiment: Experiment, data: Data, *, images: int) -> None:
        """Takes up to so many of them, evenly spaced over the unlabelled list."""
        exists = data.train.labels_exist()
        known = [index for index in data.split.unlabelled if exists[index]]
        count = min(images, len(known)) if experiment.parts.recipe.semi_supervised else 0
        self._chosen = [known[i * len(known) // count] for i in range(count)]
        self._train, self._classes, self._crop = data.train, data.info.num_classes, experiment.crop
        self._targets = TargetMaker(experiment) if count else None
        self._guided = experiment.parts.recipe.guidance

    def __len__(self) -> int:
        return len(self._chosen)

    def score(self, teacher: PyTree) -> Quality | None:
        """Compares the targets with the masks, in the upper left crop of every image at its own size.

        None where there is no such image. Several processes share the images and have the same result.
        """
        if self._targets is None:
            return None
        pseudo, guidance = np.zeros((2, self._classes, self._classes + 1), np.int64)
        for index in self._chosen[jax.process_index() :: jax.process_count()]:
            record = self._train[index]
            image, truth = (
                images_lib.decode_image(record.image),
                images_lib.decode_label(record.label),
            )
            image, truth = (array[: self._crop, : self._crop] for array in (image, truth))
            made = self._targets(teacher, image)
            pseudo += count(truth, made.pseudo, num_classes=self._classes)
            if made.guidance is not None:
                guidance += count(truth, made.guidance, num_classes=self._classes)
        pseudo, guidance = distributed.all_sum(np.stack([pseudo, guidance]))
        return Quality(pseudo=pseudo, guidance=guidance if self._guided else None)


def count(truth: Labels, label: Labels, *, num_classes: int) -> Int64[np.ndarray, "n n+1"]:
    """Pixels by true class and label; a label of 255 is the last column, a truth of 255 in no row."""
    known = truth != IGNORE_INDEX
    column = np.where(label == IGNORE_INDEX, num_classes, label)[known].astype(np.int64)
    cells = truth[known].astype(np.int64) * (num_classes + 1) + column
    size = num_classes * (num_classes + 1)
    return np.bincount(cells, minlength=size).reshape(num_classes, num_classes + 1)


def _targets(
    parts: step_lib.Parts, constants: Constants, teacher: PyTree, image: UInt8[Array, "1 s s 3"]
) -> dict[str, Int32[Array, "1 s s"] | Float[Array, "1 s s"]]:
    recipe = parts.recipe
    view = normalization.normalize(image)
    pseudo = step_lib.pseudo_label(parts, constants, teacher, view)
    sure = pseudo.confidence >= recipe.confidence_threshold
    made = {
        "pseudo": jnp.where(sure, pseudo.label, IGNORE_INDEX),
        "confidence": pseudo.confidence,
    }
    if recipe.guidance:
        ignore = jnp.zeros(view.shape[:3], bool)
        made["guidance"] = step_lib.guidance_label(parts, constants, view, ignore)
    return made
