"""Crops equal scaling the whole image and cutting; the order of the draws."""

import numpy as np
import pytest

from semivl_jax.data import images, window
from semivl_jax.data.crops import Geometry

RULES = {
    "opencv": (window.crop_opencv, images.resize_opencv),
    "pillow": (window.crop_pillow, images.resize_pillow),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def cut_out(image, label, *, crop, left, top):
    place = np.s_[top : top + crop, left : left + crop]
    return images.padded(image[place], label[place], crop=crop)


def assert_same(ours, whole, message=""):
    np.testing.assert_array_equal(ours.image, whole.image, err_msg=message)
    np.testing.assert_array_equal(ours.label, whole.label, err_msg=message)
    assert ours.size == whole.size
    assert ours.image.flags.c_contiguous and ours.label.flags.c_contiguous


def keeping_shape(draw):
    """Small images, in the published range of scales and beyond; some are an exact multiple."""
    for number in range(400):
        shape = tuple(int(n) for n in draw.integers(1, 260, 2))
        exact = (0.5, 1.0, 2.0, 3.0)[number // 10 % 4]
        factor = exact if number % 10 == 0 else draw.uniform(0.2, 3)
        size = tuple(max(1, int(side * factor + 0.5)) for side in shape)
        yield shape, size, int(draw.integers(1, 200))


def changing_shape(draw):
    for _ in range(150):
        height, width, rows, columns = (int(n) for n in draw.integers(20, 160, 4))
        yield (height, width), (rows, columns), 64


def photos(draw):
    for shape in ((375, 500), (500, 334), (480, 640), (640, 427), (512, 1024)):
        limits = {"long": 2048, "short": 512, "scale": (0.5, 2.0)}
        yield shape, window.draw_ratio_size(draw, shape, **limits), 512
        yield shape, window.draw_long_side_size(draw, shape, scale=(0.5, 2.0)), 512


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cases", [keeping_shape, changing_shape, photos])
def test_equals_scaling_the_whole_image(rule, cases):
    cut, resize = RULES[rule]
    draw = np.random.default_rng(0)
    for number, (shape, size, crop) in enumerate(cases(draw)):
        image, label = noise(*shape, 3, seed=number), noise(*shape, seed=number)
        left, top = window.draw_corner(draw, size, crop=crop)
        place = {"crop": crop, "left": left, "top": top}
        whole = cut_out(*resize(image, label, size=size), **place)
        assert_same(cut(image, label, size=size, **place), whole, f"{shape} {size} {place}")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(20, 30), (40, 60), (61, 90), (80, 120)])
def test_edges_and_corners(rule, size):
    cut, resize = RULES[rule]
    image, label = noise(40, 60, 3), noise(40, 60)
    for left in (0, max(size[1] - 24, 0)):
        for top in (0, max(size[0] - 24, 0)):
            place = {"crop": 24, "left": left, "top": top}
            whole = cut_out(*resize(image, label, size=size), **place)
            assert_same(cut(image, label, size=size, **place), whole)


def test_draws_stay_in_their_order():
    """Scale, left, top: a run that is resumed with a newer version continues its stream."""
    image, label = noise(30, 50, 3), noise(30, 50)
    for seed in range(5):
        for geometry in (
            Geometry(crop=32, resize="ratio", ratio_long=240, ratio_short=60),
            Geometry(crop=32, resize="long_side"),
        ):
            draws = rng(seed)
            if geometry.resize == "ratio":
                factor = draws.uniform(0.5, 2.0)
                size = images.fit_size(30, 50, long=int(240 * factor), short=int(60 * factor))
                whole = images.resize_opencv(image, label, size=size)
            else:
                long = int(draws.integers(25, 100, endpoint=True))
                size = images.long_side_size(30, 50, long=long)
                whole = images.resize_pillow(image, label, size=size)
            left = int(draws.integers(0, max(size[1] - 32, 0) + 1))
            top = int(draws.integers(0, max(size[0] - 32, 0) + 1))
            expected = cut_out(*whole, crop=32, left=left, top=top)
            assert_same(geometry(rng(seed), image, label), expected)


def test_ratio_stays_in_its_range_and_keeps_the_shape():
    for seed in range(20):
        size = window.draw_ratio_size(rng(seed), (30, 50), long=400, short=60, scale=(0.5, 2.0))
        assert 30 <= size[0] <= 120
        assert abs(size[1] / size[0] - 50 / 30) < 0.1


def test_long_side_draws_both_ends():
    sides = {
        window.draw_long_side_size(rng(seed), (3, 4), scale=(0.5, 2.0))[1] for seed in range(200)
    }
    assert sides == set(range(2, 9))


def test_a_thin_image_keeps_a_row():
    assert window.draw_long_side_size(rng(), (1, 100), scale=(0.1, 0.2))[0] == 1


def test_every_place_of_the_crop_occurs():
    seen = {window.draw_corner(rng(seed), (6, 7), crop=5) for seed in range(200)}
    assert seen == {(left, top) for top in range(2) for left in range(3)}
    assert window.draw_corner(rng(), (3, 4), crop=5) == (0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_padding_of_a_small_image(rule):
    cut, _ = RULES[rule]
    crop = cut(noise(3, 9, 3), noise(3, 9), size=(3, 9), crop=6, left=2, top=0)
    assert crop.size == (3, 6)
    np.testing.assert_array_equal(crop.image[:3], noise(3, 9, 3)[:, 2:8])
    assert not crop.image[3:].any() and (crop.label[3:] == 255).all()
    assert cut(noise(4, 4, 3), None, size=(4, 4), crop=4, left=0, top=0).label is None


@pytest.mark.parametrize("rule", RULES)
def test_label_of_another_size(rule):
    cut, _ = RULES[rule]
    with pytest.raises(ValueError, match="4×5 pixels for an image of 5×4"):
        cut(noise(4, 5, 3), noise(5, 4), size=(8, 8), crop=4, left=0, top=0)
