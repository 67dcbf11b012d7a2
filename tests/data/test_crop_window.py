"""Crops equal scaling the whole image and cutting; the order of the draws."""

import cv2
import numpy as np
import pytest
from PIL import Image

from semivl_jax.data import crop_window, images
from semivl_jax.data.crops import Geometry


def resize_opencv(image, label, *, size):
    nearest = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), nearest


def resize_pillow(image, label, *, size):
    rules = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    both = zip((image, label), rules, strict=True)
    return tuple(np.asarray(Image.fromarray(a).resize(size[::-1], rule)) for a, rule in both)


RULES = {
    "opencv": (crop_window.crop_opencv, resize_opencv),
    "pillow": (crop_window.crop_pillow, resize_pillow),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def cut_out(image, label, *, crop, left, top):
    """Black and 255 on the right and below, where the image ends."""
    place = np.s_[top : top + crop, left : left + crop]
    rows, columns = size = label[place].shape
    beyond = (0, crop - rows), (0, crop - columns)
    padded = np.pad(image[place], (*beyond, (0, 0)))
    return images.Crop(padded, np.pad(label[place], beyond, constant_values=255), size)


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
        yield shape, crop_window.draw_ratio_size(draw, shape, **limits), 512
        yield shape, crop_window.draw_long_side_size(draw, shape, scale=(0.5, 2.0)), 512


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cases", [keeping_shape, changing_shape, photos])
def test_equals_scaling_the_whole_image(rule, cases):
    cut, resize = RULES[rule]
    draw = np.random.default_rng(0)
    for number, (shape, size, crop) in enumerate(cases(draw)):
        image, label = noise(*shape, 3, seed=number), noise(*shape, seed=number)
        left, top = max(size[1] - crop, 0), max(size[0] - crop, 0)  # the last ones
        if number % 4:
            left, top = crop_window.draw_corner(draw, size, crop=crop)
        place = {"crop": crop, "left": left, "top": top}
        whole = cut_out(*resize(image, label, size=size), **place)
        assert_same(cut(image, label, size=size, **place), whole, f"{shape} {size} {place}")


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
                whole = resize_opencv(image, label, size=size)
            else:
                long = int(draws.integers(25, 100, endpoint=True))
                size = images.long_side_size(30, 50, long=long)
                whole = resize_pillow(image, label, size=size)
            left = int(draws.integers(0, max(size[1] - 32, 0) + 1))
            top = int(draws.integers(0, max(size[0] - 32, 0) + 1))
            expected = cut_out(*whole, crop=32, left=left, top=top)
            assert_same(geometry(rng(seed), image, label), expected)


def test_long_side_draws_both_ends():
    sides = {
        crop_window.draw_long_side_size(rng(seed), (3, 4), scale=(0.5, 2.0))[1]
        for seed in range(200)
    }
    assert sides == set(range(2, 9))


def test_a_thin_image_keeps_a_row():
    assert crop_window.draw_long_side_size(rng(), (1, 100), scale=(0.1, 0.2))[0] == 1


def test_every_place_of_the_crop_occurs():
    seen = {crop_window.draw_corner(rng(seed), (6, 7), crop=5) for seed in range(200)}
    assert seen == {(left, top) for top in range(2) for left in range(3)}
    assert crop_window.draw_corner(rng(), (3, 4), crop=5) == (0, 0)
