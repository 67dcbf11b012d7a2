"""Labels that training would use for an image, and how right they are where masks exist.

In: uint8 RGB images [h, w, 3] on the host. Out: the label maps of `Method.image_labels`, made as in the
training step; or counts int64 [n, n + 1], a row per true class and a column per label, the last one for
pixels without a label.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
from jaxtyping import Float, Int64, UInt8

from semivl_jax.data import images as images_lib
from semivl_jax.data import label_files
from semivl_jax.experiment.data import Data
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.models import image_normalization
from semivl_jax.train import distributed
from semivl_jax.train.state import Frozen, TrainState
from semivl_jax.train.step import StepModules
from semivl_jax.types import IGNORE_INDEX, PyTree

Labels = UInt8[np.ndarray, "h w"]
LabelMaps = dict[str, np.ndarray]


class ImageLabeller:
    """Makes the method's labels for images no larger than the training crop, with one compilation for all."""

    def __init__(self, experiment: Experiment, state: TrainState) -> None:
        """`state` lies on devices of this process."""
        self._experiment, self._state = experiment, state
        self._make = _compiled(experiment.modules)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the label maps, without computing them; float maps are not among them."""
        side = self._experiment.crop
        canvas = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        made = jax.eval_shape(self._make, self._experiment.local_frozen, self._state, canvas)
        return tuple(n for n, leaf in made.items() if np.issubdtype(leaf.dtype, np.integer))

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> LabelMaps:
        """Label maps uint8 [h, w] by name, 255 where training would use none, and float maps as they are.

        The image is padded to the crop right and below as in training. Empty for a method without labels.
        """
        rows, cols = image.shape[:2]
        side = self._experiment.crop
        canvas = np.zeros((1, side, side, 3), np.uint8)
        canvas[0, :rows, :cols] = image
        made = jax.device_get(self._make(self._experiment.local_frozen, self._state, canvas))
        cut = {name: leaf[0, :rows, :cols] for name, leaf in made.items()}
        return {
            name: leaf.astype(np.uint8) if np.issubdtype(leaf.dtype, np.integer) else leaf
            for name, leaf in cut.items()
        }


class PseudoLabelQuality:
    """Scores the labels on training images that the run treats as unlabelled although their masks exist."""

    def __init__(self, experiment: Experiment, data: Data, *, images: int) -> None:
        """Takes up to so many of them, evenly spaced over the unlabelled list."""
        exists = data.train.labels_exist()
        known = [index for index in data.split.unlabelled if exists[index]]
        count = min(images, len(known)) if experiment.modules.method.reads_unlabelled else 0
        self._chosen = [known[i * len(known) // count] for i in range(count)]
        self._train, self._classes, self._crop = data.train, data.info.num_classes, experiment.crop

    def __len__(self) -> int:
        return len(self._chosen)

    def score(self, labeller: ImageLabeller) -> dict[str, Int64[np.ndarray, "n n+1"]]:
        """Counts by name of the label map, in the upper left crop of every image at its own size.

        Empty where there is no such image. Several processes share the images and have the same result.
        """
        if not self._chosen:
            return {}
        names = labeller.names
        counts = np.zeros((len(names), self._classes, self._classes + 1), np.int64)
        for index in self._chosen[jax.process_index() :: jax.process_count()]:
            record = self._train[index]
            image = images_lib.decode_image(record.image)[: self._crop, : self._crop]
            truth = label_files.decode_label(record.label)[: self._crop, : self._crop]
            maps = labeller(image)
            for name, count in zip(names, counts, strict=True):
                count += confusion_counts(truth, maps[name], num_classes=self._classes)
        return dict(zip(names, distributed.all_sum(counts), strict=True))


def scalars(counts: dict[str, Int64[np.ndarray, "n n+1"]]) -> dict[str, float]:
    """In percent: pixels with a label, and the share of these that is right (NaN of none)."""
    values = {}
    for name, count in counts.items():
        labelled = count[:, :-1].sum()
        right = float(np.trace(count) / labelled) if labelled else float("nan")
        values[f"eval/{name}_labelled"] = 100 * float(labelled / max(count.sum(), 1))
        values[f"eval/{name}_right"] = 100 * right
    return values


def confusion_counts(
    truth: Labels, label: Labels, *, num_classes: int
) -> Int64[np.ndarray, "n n+1"]:
    """Pixels by true class and label; a label of 255 is the last column, a truth of 255 in no row."""
    known = truth != IGNORE_INDEX
    column = np.where(label == IGNORE_INDEX, num_classes, label)[known].astype(np.int64)
    cells = truth[known].astype(np.int64) * (num_classes + 1) + column
    size = num_classes * (num_classes + 1)
    return np.bincount(cells, minlength=size).reshape(num_classes, num_classes + 1)


@functools.lru_cache(maxsize=2)
def _compiled(modules: StepModules) -> PyTree:
    def label_maps(
        frozen: Frozen, state: TrainState, image: UInt8[jax.Array, "1 s s 3"]
    ) -> dict[str, Float[jax.Array, "1 s s"] | jax.Array]:
        networks = modules.networks(frozen, state)
        view = image_normalization.normalize(image)
        return modules.method.image_labels(networks, view, state.method)

    return jax.jit(label_maps)
