"""Masks as people have them: indices of any depth, and colours."""

import numpy as np
import pytest
from PIL import Image

from semivl_jax.data.label_files import decode_colours, decode_label, transparent_pixels
from tests.data.image_bytes import encoded, png_bits, tiff_bits


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        (kind, depth)
        for kind in ("grey", "palette", "tiff", "tiff, 0 is white")
        for depth in (1, 2, 4, 8)
    ]
    + [("grey", 16), ("tiff", 16)],
)
def test_indices_are_the_samples_of_the_file(kind, depth):
    values = (noise(5, 11) & (2 ** min(depth, 8) - 1)).astype(int)
    if kind == "palette":
        data = png_bits(values, depth, palette=noise(3 * 2**depth).tobytes())
    elif kind == "grey":
        data = png_bits(values, depth)
    else:
        data = tiff_bits(values, depth, white_is_zero="white" in kind)
    np.testing.assert_array_equal(decode_label(data), values)


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_palettes_of_other_lossless_formats(kind):
    values = noise(5, 7) % 20
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette(noise(768).tolist())
    np.testing.assert_array_equal(decode_label(encoded(image, kind)), values)


def test_sixteen_bits_beyond_a_byte():
    with pytest.raises(ValueError, match="0 … 256"):
        decode_label(encoded(Image.fromarray(np.array([[0, 256]], np.uint16))))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_without_a_list(mode):
    with pytest.raises(ValueError, match=f"mode {mode}, that is colours.*name #RRGGBB"):
        decode_label(encoded(Image.fromarray(noise(5, 7, 3)).convert(mode)))


COLOURS = {(0, 0, 0): 0, (128, 0, 0): 1, (10, 20, 30): 2, (255, 255, 255): 255}
PALETTE = np.array(list(COLOURS), np.uint8)
VALUES = np.array(list(COLOURS.values()), np.uint8)


def painted(mode: str) -> tuple[Image.Image, np.ndarray]:
    which = noise(6, 9) % len(PALETTE)
    return Image.fromarray(PALETTE[which]).convert(mode), VALUES[which]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_a_colour_per_class(mode, kind):
    image, label = painted(mode)
    np.testing.assert_array_equal(decode_colours(encoded(image, kind), COLOURS), label)


def test_colours_of_a_palette_in_another_order():
    image, label = painted("RGB")
    shuffled = image.quantize(8)
    np.testing.assert_array_equal(decode_colours(encoded(shuffled), COLOURS), label)


def test_indices_stay_indices_beside_a_list_of_colours():
    values = noise(5, 7) % 3
    grey = Image.fromarray(values)
    np.testing.assert_array_equal(decode_colours(encoded(grey), COLOURS), values)
    np.testing.assert_array_equal(decode_colours(png_bits(values, 4), COLOURS), values)


def test_black_and_white():
    values = noise(5, 7) // 128
    two = {(0, 0, 0): 0, (255, 255, 255): 1}
    for mode in ("L", "1", "RGB", "P"):
        image = Image.fromarray(values * 255).convert(mode)
        np.testing.assert_array_equal(decode_colours(encoded(image), two), values)


def test_transparent_pixels_are_void_and_half_transparent_ones_refused():
    image, label = painted("RGBA")
    pixels = np.asarray(image).copy()
    pixels[:2, :, 3] = 0
    label[:2] = 255
    data = encoded(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode_colours(data, COLOURS), label)
    assert transparent_pixels(data) == 18
    pixels[3, 3, 3] = 99
    with pytest.raises(ValueError, match="1 half transparent pixels"):
        decode_colours(encoded(Image.fromarray(pixels)), COLOURS)


def test_unknown_colours_are_counted():
    image, _ = painted("RGB")
    pixels = np.asarray(image).copy()
    pixels[0, :4] = 1, 2, 3
    pixels[1, 0] = 9, 9, 9
    with pytest.raises(ValueError, match=r"colour #010203 and 1 more \(9.26 % of its pixels\)"):
        decode_colours(encoded(Image.fromarray(pixels)), COLOURS)
