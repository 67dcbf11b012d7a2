"""Photos with more than 8 bits come out as bright as they are."""

import numpy as np
import pytest
from PIL import Image

from semivl_jax.data.images import decode_image, to_rgb
from tests.data.image_bytes import encoded, encoded_by_opencv, png_bits


def ramp(highest: int, kind: type, *, colour: bool) -> np.ndarray:
    grey = np.linspace(0, highest, 64 * 40).reshape(40, 64).astype(kind)
    return np.stack([grey, grey // 2, grey // 4], axis=-1) if colour else grey


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".png", np.uint16), (".tif", np.uint16), (".tif", np.int32), (".tif", np.float32),
     (".ppm", np.uint16), (".jp2", np.uint16)],
)  # fmt: skip
def test_samples_are_divided_by_the_range_that_they_use(bits, colour, suffix, kind):
    if suffix == ".ppm" and not colour:
        suffix = ".pgm"
    samples = ramp(2**bits - 1, kind, colour=colour)
    decoded = decode_image(encoded_by_opencv(samples, suffix)).astype(int)
    expected = (samples // 2 ** (bits - 8)).astype(int)
    expected = expected if colour else np.repeat(expected[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decoded, expected)


def test_fractions_of_white():
    samples = ramp(1, np.float32, colour=True)
    decoded = decode_image(encoded_by_opencv(samples, ".tif"))
    np.testing.assert_array_equal(decoded, np.floor(samples * 255 + 0.5))


def test_pillow_images_and_orientation():
    samples = ramp(4095, np.uint16, colour=False)
    expected = np.repeat((samples >> 4)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(samples)), expected)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(samples), exif=exif)
    np.testing.assert_array_equal(decode_image(data), np.rot90(expected, -1))


def test_samples_without_a_range_are_refused():
    for samples in (np.full((2, 2), -1.0, np.float32), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(ValueError, match="save it as 8-bit RGB"):
            decode_image(encoded_by_opencv(samples, ".tif"))


def test_sixteen_bits_cut_short():
    data = png_bits(ramp(65535, np.uint16, colour=False), 16)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        decode_image(data[: len(data) // 2])
