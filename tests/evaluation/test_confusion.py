"""Counting, IoU, and the table."""

import jax
import numpy as np
import pytest

from semivl_jax.evaluation import confusion
from tests.golden_files import Golden


def counted(prediction, label, num_classes):
    count = jax.jit(confusion.count, static_argnames="num_classes")
    return np.asarray(count(prediction, label, num_classes=num_classes)).astype(np.int64)


@pytest.mark.golden
def test_published_metric():
    golden = Golden("eval_modes")
    classes = golden.meta["metric_nclass"]
    total = np.zeros((classes, classes), np.int64)
    for i in range(golden.meta["metric_n"]):
        prediction, label = (golden[f"in/metric/{i}/{name}"] for name in ("pred", "mask"))
        matrix = np.zeros_like(total)
        for p, y in zip(
            prediction.reshape(-1, *prediction.shape[-2:]),
            label.reshape(-1, *label.shape[-2:]),
            strict=True,
        ):
            matrix += counted(p.astype(np.uint8), y.astype(np.uint8), classes)
        intersection = golden[f"out/metric/{i}/intersection"]
        np.testing.assert_array_equal(np.diagonal(matrix), intersection)
        np.testing.assert_array_equal(matrix.sum(1), golden[f"out/metric/{i}/target"])
        union = matrix.sum(0) + matrix.sum(1) - np.diagonal(matrix)
        np.testing.assert_array_equal(union, golden[f"out/metric/{i}/union"])
        total += matrix
    np.testing.assert_allclose(confusion.iou(total), golden["out/metric/iou_class"], rtol=1e-6)
    np.testing.assert_allclose(confusion.iou(total).mean(), golden["out/metric/miou"], rtol=1e-6)


def test_rows_are_labels_and_ignored_pixels_are_nowhere():
    label = np.array([[0, 0, 1, 255], [2, 2, 255, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 2], [2, 0, 0, 1]], np.uint8)
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    np.testing.assert_array_equal(counted(prediction, label, 3), expected)


def test_a_class_that_never_occurs_has_zero_and_counts_in_the_mean():
    matrix = np.diag([5, 0, 7]).astype(np.int64)
    np.testing.assert_allclose(confusion.iou(matrix), [100, 0, 100])
    np.testing.assert_array_equal(confusion.present(matrix), [True, False, True])


def test_the_score_of_an_image_is_the_mean_over_the_classes_it_shows():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]], np.int64)
    assert confusion.image_iou(matrix) == pytest.approx((100 * 3 / 4 + 100 * 4 / 5) / 2)
    stray = np.array(
        [[3, 0, 1], [0, 4, 0], [0, 0, 0]], np.int64
    )  # the third class is only predicted
    assert confusion.image_iou(stray) == pytest.approx((100 * 3 / 4 + 100) / 2)
    assert np.isnan(confusion.image_iou(np.zeros((3, 3), np.int64)))


def test_counts_beyond_32_bits_are_exact():
    matrix = np.array([[2**40, 2**40], [0, 2**41]], np.int64)
    np.testing.assert_allclose(confusion.iou(matrix), [50, 200 / 3])


def test_table_marks_absent_classes_and_lines_up():
    matrix = np.array([[90, 10, 0], [20, 80, 0], [0, 0, 0]], np.int64)
    lines = confusion.format_table(matrix, ["sky", "traffic light", "bus"]).splitlines()
    assert lines[2].split() == ["sky", "75.00", "90.00", "50.00%"]
    assert lines[3].split() == ["traffic", "light", "72.73", "80.00", "50.00%"]
    assert lines[4].split() == ["bus", "0.00", "absent"]
    assert lines[-2].split() == ["mean", "49.24", "85.00"]
    assert lines[-1].split() == ["without", "absent", "73.86"]
    assert "without" not in confusion.format_table(matrix[:2, :2], ["sky", "road"])
    assert len({len(line) for line in lines[:5]}) == 1
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        confusion.format_table(matrix, ["a", "b"])
