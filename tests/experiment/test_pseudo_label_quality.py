"""Counts of labels, with and without masks, and the metrics made from them, by hand."""

import io
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from semivl_jax.data.source import Record
from semivl_jax.experiment import pseudo_label_quality
from semivl_jax.experiment.data import Data
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.experiment.pseudo_label_quality import ImageLabeller, PseudoLabelQuality

TRUTH = np.array([[0, 0, 1], [1, 255, 2]], np.uint8)
LABEL = np.array([[0, 255, 1], [0, 1, 255]], np.uint8)
CLASSES = ("road", "car", "sign")


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_metrics_of_labels_by_hand():
    counts = pseudo_label_quality.confusion_counts(TRUTH, LABEL, num_classes=3)
    np.testing.assert_array_equal(counts, [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]])
    labelled = np.array([80, 10, 10])
    values = pseudo_label_quality.scalars({"pseudo": counts}, labelled=labelled, classes=CLASSES)
    assert values == {
        "eval/pseudo_labelled": pytest.approx(400 / 6),
        "eval/pseudo_right": pytest.approx(200 / 3),
        # Labels: half road, half car. Masks: 80, 10, 10. Distance: (30 + 40 + 10) / 2.
        "eval/pseudo_drift": pytest.approx(40),
        "eval/pseudo_share/road": 50,
        "eval/pseudo_share/car": 50,
        "eval/pseudo_share/sign": 0,
        "eval/pseudo_precision/road": 50,
        "eval/pseudo_precision/car": 100,
        "eval/pseudo_precision/sign": pytest.approx(np.nan, nan_ok=True),
        "eval/pseudo_coverage/road": 50,
        "eval/pseudo_coverage/car": 100,
        "eval/pseudo_coverage/sign": 0,
    }


def test_metrics_without_masks_and_of_all_predictions():
    unknown = np.full_like(TRUTH, 255)
    counts = pseudo_label_quality.confusion_counts(unknown, LABEL, num_classes=3)
    everywhere = np.array([[0, 0, 1], [0, 1, 0]], np.uint8)
    predicted = pseudo_label_quality.confusion_counts(TRUTH, everywhere, num_classes=3)
    values = pseudo_label_quality.scalars(
        {"pseudo": counts, "predicted": predicted},
        labelled=np.array([2, 1, 1]),
        classes=CLASSES,
    )
    scalars = {name: value for name, value in values.items() if name.count("/") == 1}
    assert scalars == {
        "eval/pseudo_labelled": pytest.approx(400 / 6),
        "eval/pseudo_drift": pytest.approx(25),
        "eval/predicted_right": pytest.approx(60),
        "eval/predicted_drift": pytest.approx((100 / 6 + 50 / 6 + 25) / 2),
    }
    kinds = {name.split("/")[1] for name in values if name.count("/") == 2}
    assert kinds == {"pseudo_share", "predicted_share"}


def test_no_label_at_all_has_no_share():
    counts = np.zeros((3, 3), np.int64)
    counts[2, 2] = 9
    values = pseudo_label_quality.scalars(
        {"pseudo": counts}, labelled=np.array([1, 1]), classes=("a", "b")
    )
    assert values["eval/pseudo_labelled"] == 0 and np.isnan(values["eval/pseudo_drift"])


class Unlabelled:
    """Six images of 4 × 6 pixels, all of class 1; only the first two have masks, of class 0."""

    def labels_exist(self):
        return np.arange(6) < 2

    def __getitem__(self, index):
        image = np.full((4, 6, 3), 1, np.uint8)
        label = np.zeros((4, 6), np.uint8) if index < 2 else None
        return Record(str(index), png(image), None if label is None else png(label))


@pytest.mark.parametrize(
    ("images", "counted"),
    [(5, [[0, 40, 0], [0, 0, 0], [0, 60, 0]]), (1, [[0, 20, 0], [0, 0, 0], [0, 0, 0]]), (0, None)],
)
def test_images_without_masks_are_counted_after_those_with_masks(images, counted):
    method = SimpleNamespace(reads_unlabelled=True)
    experiment = Mock(Experiment, crop=5, modules=SimpleNamespace(method=method))
    info, split = SimpleNamespace(num_classes=2), SimpleNamespace(unlabelled=range(6))
    quality = PseudoLabelQuality(
        experiment, Mock(Data, train=Unlabelled(), info=info, split=split), images=images
    )
    assert len(quality) == images
    # The label of a pixel is its red value.
    labeller = Mock(
        ImageLabeller, names=("pseudo",), side_effect=lambda image: {"pseudo": image[..., 0]}
    )
    counts = quality.score(labeller)
    assert all(call.args[0].shape == (4, 5, 3) for call in labeller.call_args_list)
    if counted is None:
        assert counts == {}
    else:
        np.testing.assert_array_equal(counts["pseudo"], counted)


def test_crops_show_all_parts_of_the_images():
    crops = [pseudo_label_quality.crop_of(index, (9, 4), side=6) for index in range(40)]
    assert {rows.start for rows, _ in crops} == {0, 1, 2, 3}
    assert {columns.start for _, columns in crops} == {0}
    assert crops == [pseudo_label_quality.crop_of(index, (9, 4), side=6) for index in range(40)]
