"""Random scale and place of a crop, and the crop itself without scaling what it does not show.

In: images uint8 [h, w, 3], labels uint8 [h, w], a `numpy.random.Generator`. Out: `images.Crop`.

Rules and order of the draws (docs/semivl.md 6):

    ratio      factor r ~ U(low, high); the image is fitted into int(long · r) × int(short · r); OpenCV
    long side  new long side uniform in int(L · low) … int(L · high), both included; Pillow
    place      left, then top, each uniform over all places inside the padded image

`crop_opencv` and `crop_pillow` return, to the bit, what scaling the whole image and cutting afterwards
would. A crop of 801 pixels out of a scene of 2048 × 1024 scaled by two is a thirteenth of the scaled scene.
JPEGs are not decoded at a reduced size: it would be another image, by more than rounding (docs/datasets.md).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from semivl_jax.data import images

Size = tuple[int, int]  # rows, columns


def draw_ratio_size(
    rng: np.random.Generator, shape: Size, *, long: int, short: int, scale: tuple[float, float]
) -> Size:
    """Size of an image fitted into long × short times a random factor."""
    factor = rng.uniform(*scale)
    return images.fit_size(*shape, long=int(long * factor), short=int(short * factor))


def draw_long_side_size(
    rng: np.random.Generator, shape: Size, *, scale: tuple[float, float]
) -> Size:
    """Size of an image whose long side is itself times a random factor."""
    side = max(shape)
    long = int(rng.integers(int(side * scale[0]), int(side * scale[1]), endpoint=True))
    return images.long_side_size(*shape, long=max(long, 1))


def draw_corner(rng: np.random.Generator, size: Size, *, crop: int) -> tuple[int, int]:
    """(left, top) of a crop of an image of this size; (0, 0) where the crop is the larger one."""
    height, width = size
    left = int(rng.integers(max(width - crop, 0), endpoint=True))
    top = int(rng.integers(max(height - crop, 0), endpoint=True))
    return left, top


def draw_corner_around(
    rng: np.random.Generator, size: Size, shown: Bool[np.ndarray, "h w"], *, crop: int
) -> tuple[int, int]:
    """(left, top) of a crop that shows one of the marked pixels, to the rounding of its place.

    The pixel is drawn from those marked before scaling, then the corner uniformly from those that fit.
    """
    place = rng.choice(np.flatnonzero(shown))
    corner = []
    for at, length, scaled in zip(
        np.unravel_index(place, shown.shape), shown.shape, size, strict=True
    ):
        at = int((at + 0.5) * scaled / length)
        last = max(scaled - crop, 0)
        corner.append(
            int(rng.integers(min(max(at - crop + 1, 0), last), min(at, last), endpoint=True))
        )
    return corner[1], corner[0]


def crop_opencv(
    image: images.HostImage,
    label: images.HostLabel | None,
    *,
    size: Size,
    crop: int,
    left: int,
    top: int,
) -> images.Crop:
    """The crop at (top, left) of the image scaled by OpenCV; black and 255 where there is no image.

    OpenCV reads pixel (i + 0.5) · scale − 0.5 counted from the upper left corner, so what lies right of
    and below the crop can be left out if the scale is given as a number instead of as a size.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    bottom, right = min(top + crop, rows), min(left + crop, columns)
    # One pixel more is read and one is for the rounding.
    used = np.s_[: math.ceil(bottom * height / rows) + 2, : math.ceil(right * width / columns) + 2]

    def scaled(pixels: UInt8[np.ndarray, "..."], rule: int) -> UInt8[np.ndarray, "..."]:
        factors = {"fx": columns / width, "fy": rows / height}
        return cv2.resize(pixels[used], None, **factors, interpolation=rule)[top:bottom, left:right]

    return images.padded(
        scaled(image, cv2.INTER_LINEAR),
        None if label is None else scaled(label, cv2.INTER_NEAREST),
        crop=crop,
    )


def crop_pillow(
    image: images.HostImage,
    label: images.HostLabel | None,
    *,
    size: Size,
    crop: int,
    left: int,
    top: int,
) -> images.Crop:
    """The crop at (top, left) of the image scaled by Pillow; black and 255 where there is no image."""
    bottom, right = min(top + crop, size[0]), min(left + crop, size[1])
    place = np.s_[top:bottom, left:right]
    if _columns_first(image.shape[:2], size):
        pixels = _antialiased(image, size, place)
    else:
        whole = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(whole)[place]
    if label is None:
        return images.padded(pixels, None, crop=crop)
    from_row = _nearest(label.shape[0], size[0])[top:bottom]
    from_column = _nearest(label.shape[1], size[1])[left:right]
    return images.padded(pixels, label[from_row][:, from_column], crop=crop)


def _columns_first(shape: Size, size: Size) -> bool:
    """Whether Pillow scales along x first and along y after that, rounding in between.

    All versions do to enlarge. To shrink, recent ones may reverse the order, but not for an image that keeps
    its shape and is less than twice as high as wide.
    """
    (height, width), (rows, columns) = shape, size
    keeps_shape = abs(columns * height - rows * width) <= max(height, width)
    return rows >= height or (keeps_shape and height < 2 * width)


def _antialiased(
    image: images.HostImage, size: Size, place: tuple[slice, slice]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pillow's two passes one by one: along x for the rows that the crop needs, then along y for its
    columns. Each pass sees the whole length of its axis, since a part of it would have other weights.
    """
    height, (rows, columns) = image.shape[0], size
    in_rows, in_columns = place
    scale = height / rows
    reach = max(scale, 1) + 1  # half the filter, and one row for the rounding
    first = max(math.floor(in_rows.start * scale - reach), 0)
    last = min(math.ceil(in_rows.stop * scale + reach), height)
    rule = Image.Resampling.BILINEAR
    strip = Image.fromarray(image[first:last]).resize((columns, last - first), rule)
    tall = Image.new("RGB", (in_columns.stop - in_columns.start, height))
    tall.paste(strip.crop((in_columns.start, 0, in_columns.stop, last - first)), (0, first))
    return np.asarray(tall.resize((tall.width, rows), rule))[in_rows]


def _nearest(length: int, scaled: int) -> np.ndarray:
    """The pixel that Pillow's nearest rule takes for every pixel of a scaled line, int32 [scaled]."""
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None, :])
    return np.asarray(line.resize((scaled, 1), Image.Resampling.NEAREST))[0]
