"""Labelled crops that show rare classes."""

import numpy as np
import pytest
import scipy.special

from semivl_jax.data import crop_window
from semivl_jax.data.crops import Geometry
from semivl_jax.data.rare_classes import RareClassSampler

COUNTS = [{0: 900, 1: 100}, {0: 950, 2: 10, 255: 40}, {0: 960, 1: 30, 2: 10}, {255: 1000}]


def drawn(share, count=4000):
    sampler = RareClassSampler.from_counts(COUNTS, num_classes=4, share=share, seed=5)
    return [sampler(index) for index in range(count)]


def test_probabilities_are_those_of_daformer():
    """Softmax of (1 − f) / 0.01, https://github.com/lhoyer/DAFormer; class 3 has no pixel."""
    pixels = np.array([2810, 130, 20])
    expected = scipy.special.softmax((1 - pixels / pixels.sum()) / 0.01)
    found = np.bincount([value for _, value in drawn(1.0)], minlength=4) / 4000
    np.testing.assert_allclose(found[:3], expected, atol=0.01)
    assert found[3] == 0


def test_images_show_the_class_and_are_equally_likely():
    images = [position for position, value in drawn(1.0) if value == 2]
    assert np.bincount(images).tolist()[0] == 0
    np.testing.assert_allclose(np.bincount(images)[1:] / len(images), [0.5, 0.5], atol=0.03)


def test_share_of_crops_drawn_by_class():
    assert np.mean([pair is not None for pair in drawn(0.25)]) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("resize", ["ratio", "long_side"])
@pytest.mark.parametrize("place", [np.s_[:3, :3], np.s_[30:33, 40:43], np.s_[-3:, -3:]])
def test_crop_shows_the_class(resize, place):
    label = np.zeros((60, 80), np.uint8)
    label[place] = 1
    geometry = Geometry(crop=32, resize=resize, ratio_long=160, ratio_short=60, scale_min=1.0)
    image = np.repeat(label[..., None], 3, 2)
    for seed in range(50):
        crop = geometry(np.random.default_rng(seed), image, label, shown=1)
        assert (crop.label == 1).any()


def test_crop_around_a_pixel_is_anywhere_that_shows_it():
    shown = np.zeros((10, 10), bool)
    shown[4, 6] = True
    corners = {
        crop_window.draw_corner_around(np.random.default_rng(seed), (10, 10), shown, crop=3)
        for seed in range(300)
    }
    assert corners == {(left, top) for left in (4, 5, 6) for top in (2, 3, 4)}
