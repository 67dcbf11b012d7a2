"""Labels that training would use for an image, their classes, and how right they are where masks exist.

In: uint8 RGB images [h, w, 3] on the host. Out: the label maps of `Method.image_labels`, made as in the
training step, and the teacher's most probable classes; or counts int64 [n + 1, n + 1], a row per true class
and a column per label. The last row: pixels whose class is not known (no mask, or void); the last column:
pixels without a label.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int64, UInt8
from numpy.typing import ArrayLike

from semivl_jax.data import images as images_lib
from semivl_jax.data import label_files
from semivl_jax.data.source import Record
from semivl_jax.experiment.data import Data
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.models import image_normalization
from semivl_jax.train import distributed
from semivl_jax.train.state import Frozen, TrainState
from semivl_jax.train.step import StepModules
from semivl_jax.types import IGNORE_INDEX, PyTree

Image = UInt8[np.ndarray, "h w 3"]
Labels = UInt8[np.ndarray, "h w"]
LabelMaps = dict[str, np.ndarray]
Counts = Int64[np.ndarray, "m m"]

PREDICTED = "predicted"
"""The map of the teacher's most probable classes, whatever their confidence."""


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

    def __call__(self, image: Image) -> LabelMaps:
        """Label maps uint8 [h, w] by name, 255 where training would use none, and float maps as they are.

        Beside the maps of the method there is PREDICTED. The image is padded to the crop right and below as
        in training. Empty for a method without labels.
        """
        rows, cols = image.shape[:2]
        side = self._experiment.crop
        canvas = images_lib.padded(image, None, crop=side).image[None]
        made = jax.device_get(self._make(self._experiment.local_frozen, self._state, canvas))
        cut = {name: leaf[0, :rows, :cols] for name, leaf in made.items()}
        return {
            name: leaf.astype(np.uint8) if np.issubdtype(leaf.dtype, np.integer) else leaf
            for name, leaf in cut.items()
        }


class PseudoLabelQuality:
    """Counts the labels of unlabelled images, and compares them with masks that exist nevertheless."""

    def __init__(self, experiment: Experiment, data: Data, *, images: int) -> None:
        """Takes up to so many unlabelled images, evenly spaced over their list, those with masks first."""
        exists = data.train.labels_exist()
        unlabelled = data.split.unlabelled if experiment.modules.method.reads_unlabelled else ()
        self._chosen: list[int] = []
        for masks in (True, False):
            group = [index for index in unlabelled if exists[index] == masks]
            count = min(images - len(self._chosen), len(group))
            self._chosen += [group[i * len(group) // count] for i in range(count)]
        self._train, self._classes, self._crop = data.train, data.info.num_classes, experiment.crop

    def __len__(self) -> int:
        return len(self._chosen)

    def score(self, labeller: ImageLabeller) -> dict[str, Counts]:
        """Counts by name of the label map, in one crop of every image at its own size.

        The place of the crop is drawn from the image's index, so that the crops together show all parts of
        the images, and the same ones at every evaluation. Empty where there is no such image. Several
        processes share the images and have the same result.
        """
        if not self._chosen:
            return {}
        names = labeller.names
        counts = np.zeros((len(names), self._classes + 1, self._classes + 1), np.int64)
        for index in self._chosen[jax.process_index() :: jax.process_count()]:
            image, truth = crop_with_mask(self._train[index], index, side=self._crop)
            maps = labeller(image)
            for name, count in zip(names, counts, strict=True):
                count += confusion_counts(truth, maps[name], num_classes=self._classes)
        return dict(zip(names, distributed.all_sum(counts), strict=True))


def crop_with_mask(record: Record, index: int, *, side: int) -> tuple[Image, Labels]:
    """`crop_of` an image at its own size, and of its mask; 255 where there is none."""
    image = images_lib.decode_image(record.image)
    truth = np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
    if record.label is not None:
        truth = label_files.decode_label(record.label)
    crop = crop_of(index, image.shape[:2], side=side)
    return image[crop], truth[crop]


def crop_of(index: int, size: tuple[int, ...], *, side: int) -> tuple[slice, ...]:
    """A crop of `side` pixels at most, at a place that depends on the index only."""
    random = np.random.default_rng(index)
    starts = [int(random.integers(max(0, length - side) + 1)) for length in size]
    return tuple(slice(start, start + side) for start in starts)


def scalars(
    counts: dict[str, Counts], *, labelled: Int64[np.ndarray, " n"], classes: Sequence[str]
) -> dict[str, float]:
    """Metrics of every label map, in percent; NaN is 0 of 0.

    `labelled`: pixels of each class in the masks of the labelled images. By name of the map:

        NAME_labelled         pixels with a label
        NAME_drift            total variation distance between the classes of the labels and those of the
                              masks of the labelled images, ½ Σ |share of the labels - share of the masks|:
                              0: the same shares, 100: no class in common
        NAME_share/CLASS      labels that are of this class
        NAME_right            labels that are right, where masks exist
        NAME_precision/CLASS  labels of this class that are right, where masks exist
        NAME_coverage/CLASS   pixels of this true class that get a label, where masks exist

    PREDICTED, which labels every pixel, has only drift, share and right.
    """
    values = {}
    for name, count in counts.items():
        labels, known = count[:, :-1].sum(0), count[:-1, :-1]
        share = _percent(labels, labels.sum())
        drift = np.abs(share - _percent(labelled, labelled.sum())).sum() / 2
        of_class = {"share": share}
        if name != PREDICTED:
            values[f"eval/{name}_labelled"] = float(_percent(labels.sum(), count.sum()))
        if count[:-1].any():
            values[f"eval/{name}_right"] = float(_percent(np.trace(known), known.sum()))
            if name != PREDICTED:
                of_class["precision"] = _percent(np.diagonal(known), known.sum(0))
                of_class["coverage"] = _percent(known.sum(1), count[:-1].sum(1))
        values[f"eval/{name}_drift"] = float(drift)
        for metric, numbers in of_class.items():
            for label, number in zip(classes, numbers.tolist(), strict=True):
                values[f"eval/{name}_{metric}/{label}"] = number
    return values


def _percent(part: ArrayLike, whole: ArrayLike) -> Any:
    whole = np.asarray(whole, np.float64)
    return 100 * np.asarray(part, np.float64) / np.where(whole > 0, whole, np.nan)


def confusion_counts(truth: Labels, label: Labels, *, num_classes: int) -> Counts:
    """Pixels by true class and label; 255 is the last row and the last column."""
    row, column = (
        np.where(values == IGNORE_INDEX, num_classes, values).astype(np.int64)
        for values in (truth, label)
    )
    size = num_classes + 1
    cells = (row * size + column).ravel()
    return np.bincount(cells, minlength=size**2).reshape(size, size)


@functools.lru_cache(maxsize=2)
def _compiled(modules: StepModules) -> PyTree:
    def label_maps(
        frozen: Frozen, state: TrainState, image: UInt8[jax.Array, "1 s s 3"]
    ) -> dict[str, Float[jax.Array, "1 s s"] | jax.Array]:
        networks = modules.networks(frozen, state)
        view = image_normalization.normalize(image)
        labels = modules.method.image_labels(networks, view, state.method)
        if labels:
            labels = labels | {PREDICTED: networks.predict(networks.teacher, view).label}
        return labels

    return jax.jit(label_maps)
