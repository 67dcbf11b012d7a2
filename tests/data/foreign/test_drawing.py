"""Outlines and run lengths against maps made by hand, and against strings of pycocotools."""

import numpy as np
import pytest

from semivl_jax.data.foreign.drawing import Canvas, draw_segmentation, run_lengths

# From pycocotools.mask.encode of numpy.random.default_rng(0).random((9, 13)) < 0.4.
RANDOM = "111031O0NO01003OO13OK010O22N00N040L12ON082JN10M10O80H13"


def test_compressed_run_lengths():
    expected = np.random.default_rng(0).random((9, 13)) < 0.4
    np.testing.assert_array_equal(run_lengths(RANDOM, (9, 13)), expected)
    np.testing.assert_array_equal(run_lengths(RANDOM.encode(), (9, 13)), expected)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([4], "run lengths of 4 pixels for an image of 13x9"),
        ([-3, 120], "run lengths of 117"),
        (RANDOM[:-2], "run lengths of"),
        ("d", "cut off"),
    ],
)
def test_run_lengths_that_do_not_fit(counts, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_lengths(counts, (9, 13))


def test_shapes():
    canvas = Canvas((6, 8), rest=255)
    canvas.rectangle(1, 1, 5, 4, 2)
    canvas.polygon([[4, 3], [8, 3], [8, 6], [4, 6]], 3)
    canvas.mask(np.ones((2, 9), bool), 1, left=-1, top=5)
    expected = np.full((6, 8), 255)
    expected[1:4, 1:5] = 2
    expected[3:, 4:] = 3
    expected[5:, :] = 1
    np.testing.assert_array_equal(canvas.label(), expected)
    canvas = Canvas((40, 40))
    canvas.ellipse(20, 20, 10.2, 5.2, 1)
    down, right = np.mgrid[:40, :40] + 0.5
    inside = ((right - 20) / 10.2) ** 2 + ((down - 20) / 5.2) ** 2 <= 1
    assert (canvas.label() != inside).sum() <= 4  # centres on the outline


def test_segmentations():
    canvas = Canvas((9, 13))
    draw_segmentation(canvas, {"counts": RANDOM, "size": [9, 13]}, 4)
    draw_segmentation(canvas, [[0, 0, 13, 0, 13, 2, 0, 2]], 1)
    label = canvas.label()
    assert (label[:2] == 1).all()
    np.testing.assert_array_equal(label[2:] == 4, run_lengths(RANDOM, (9, 13))[2:])
    for wrong in ([[1, 1, 2, 2]], {"counts": [1], "size": [1, 1]}):
        with pytest.raises(ValueError, match=r"corners|size"):
            draw_segmentation(canvas, wrong, 1)
