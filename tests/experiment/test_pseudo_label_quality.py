import numpy as np
import pytest

from semivl_jax.experiment import pseudo_label_quality


def test_pseudo_label_counts():
    truth = np.array([[0, 0, 1], [1, 255, 2]], np.uint8)
    label = np.array([[0, 255, 1], [0, 1, 255]], np.uint8)
    counts = pseudo_label_quality.confusion_counts(truth, label, num_classes=3)
    np.testing.assert_array_equal(counts, [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]])
    values = pseudo_label_quality.scalars({"pseudo": counts})
    assert values == {"eval/pseudo_labelled": 60.0, "eval/pseudo_right": pytest.approx(200 / 3)}
