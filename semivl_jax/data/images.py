"""Files to arrays, and the geometry of whole images: decoding, scaling, padding, cropping.

In: encoded bytes. Between: images uint8 RGB [h, w, 3] and labels uint8 [h, w] (class indices, 255 = void).
Out: square crops, black and 255 where they reach beyond the image.

The two ways to scale (docs/semivl.md 6):

    OpenCV     bilinear without antialias for the image, nearest (rounds down) for the label
    Pillow     bilinear with antialias for the image, nearest (pixel centres) for the label

Nothing here is random; `crop_window` draws scales and places and computes only the part of the scaled image
that a crop shows. Errors do not name the file: the caller adds its name.
"""

from __future__ import annotations

import dataclasses
import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from semivl_jax.data import deep_images
from semivl_jax.data.dataset_info import IGNORE_INDEX

HostImage = UInt8[np.ndarray, "h w 3"]
# Its own dimension names, so that labels of another size reach `check_pair`.
HostLabel = UInt8[np.ndarray, "label_h label_w"]
ScaledImage = UInt8[np.ndarray, "new_h new_w 3"]

# Modes of Pillow whose samples are no 8-bit values.
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

LEAST_SIDE = 4
MOST_ASPECT = 32
"""Limits of images: pixels of the shorter side, and how many times as long the longer one may be."""

_PLAIN = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_ORIENTATION = 0x0112  # EXIF tag; 1 = upright


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square crop; `size` = (rows, columns) of it that are image, the rest is right and below."""

    image: UInt8[np.ndarray, "s s 3"]
    label: UInt8[np.ndarray, "s s"] | None
    size: tuple[int, int]


def decode_image(data: bytes) -> HostImage:
    """An image file of any kind as RGB, turned upright by its EXIF data; transparency is dropped.

    Samples of more than 8 bits are divided by the range that they use (`deep_images`).

    Raises:
      ValueError: bytes that are no complete image, or samples that are negative or no numbers.
    """
    if _is_plain_jpeg(data):
        # The same pixels as Pillow's (a test compares them), without Pillow's copies.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _PLAIN)
        if pixels is not None:
            return pixels
    samples = deep_images.deep_samples(data)
    if samples is None:
        return to_rgb(open_upright(data)[0])
    if data.startswith((deep_images.PNG, *deep_images.JPEG_2000)):
        open_upright(data)  # OpenCV reads also what is damaged or cut off
    image = Image.fromarray(np.ascontiguousarray(deep_images.to_eight_bits(samples)))
    image.getexif()[_ORIENTATION] = stored_size(data)[1]
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image)


def stored_size(data: bytes) -> tuple[tuple[int, int], int]:
    """(rows, columns) of an image file as it is stored, and its EXIF orientation: 1 = upright.

    ((0, 0), 1) where it cannot be read; `open_upright` raises with the reason.
    """
    try:
        image = Image.open(io.BytesIO(data))
        return image.size[::-1], int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return (0, 0), 1


def to_rgb(image: Image.Image) -> HostImage:
    """A decoded image of any mode as RGB; transparency is dropped, more than 8 bits as `deep_images`.

    Raises:
      ValueError: negative samples, or some that are no numbers.
    """
    if image.mode in DEEP_MODES:
        return deep_images.to_eight_bits(np.asarray(image))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def check_labels(label: HostLabel, *, num_classes: int) -> None:
    """Every value must be a class index or 255.

    Raises:
      ValueError: another value, which the published metric counts to the last class (docs/semivl.md 9.16).
    """
    wrong = (label >= num_classes) & (label != IGNORE_INDEX)
    if wrong.any():
        values = ", ".join(str(value) for value in np.unique(label[wrong])[:5])
        raise ValueError(
            f"label map with the value {values}, but the {num_classes} classes have the indices 0 … "
            f"{num_classes - 1}; correct the map, add the class, or write {IGNORE_INDEX} there (not counted)"
        )


def check_size(image: HostImage) -> None:
    """An image must not be too small or too thin; the same limits hold for training and prediction.

    The short side is enlarged to the windows' size, and a thin image would become thousands of windows.

    Raises:
      ValueError: it is.
    """
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE or max(height, width) > MOST_ASPECT * min(height, width):
        raise ValueError(
            f"image of {width}×{height} pixels: the shorter side needs at least {LEAST_SIDE} pixels, and the "
            f"longer one may be {MOST_ASPECT} times as long; leave it out, or cut it into pieces"
        )


def fit_size(height: int, width: int, *, long: float, short: float) -> tuple[int, int]:
    """(height, width) at the largest scale where neither side exceeds its limit, sides rounded."""
    factor = min(long / max(height, width), short / min(height, width))
    return _at_least_one(height * factor), _at_least_one(width * factor)


def long_side_size(height: int, width: int, *, long: int) -> tuple[int, int]:
    """(height, width) with the long side given, the other rounded."""
    if height > width:
        return long, _at_least_one(width * long / height)
    return _at_least_one(height * long / width), long


def resize_short_side(image: HostImage, *, short: int) -> ScaledImage:
    """Bring the short side to `short`, without a limit for the long one (docs/semivl.md 9.17)."""
    height, width = image.shape[:2]
    long = short * max(height, width) / min(height, width)
    return resize_opencv(image, size=fit_size(height, width, long=long, short=short))


def resize_for_windows(image: HostImage, *, short: int, least: int, most: int) -> ScaledImage:
    """Like `resize_short_side` (`short` = 0: as it is), for images of any size and shape.

    The short side has `least` pixels at least. Nothing is enlarged beyond `most` pixels in all, so that an
    extremely thin image may become thicker than its shape allows.
    """
    height, width = image.shape[:2]
    wanted = max(short or min(height, width), least)
    if wanted == min(height, width):
        return image
    if wanted < min(height, width) or wanted**2 * max(height, width) / min(height, width) <= most:
        return resize_short_side(image, short=wanted)
    factor = max(1.0, (most / (height * width)) ** 0.5)
    size = max(int(height * factor), least), max(int(width * factor), least)
    return image if size == (height, width) else resize_opencv(image, size=size)


def resize_to_area(image: HostImage, *, most: int) -> ScaledImage:
    """Reduced to at most `most` pixels in all, or as it is."""
    height, width = image.shape[:2]
    factor = (most / (height * width)) ** 0.5
    if factor >= 1:
        return image
    size = max(int(height * factor), 1), max(int(width * factor), 1)
    return resize_opencv(image, size=size)


def resize_opencv(image: HostImage, *, size: tuple[int, int]) -> ScaledImage:
    """To (height, width), bilinear without antialias."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def padded(image: HostImage, label: HostLabel | None, *, crop: int) -> Crop:
    """A window of at most crop × crop pixels as a crop: black and 255 on the right and below."""
    rows, columns = image.shape[:2]
    return Crop(
        _filled(image, crop, 0),
        None if label is None else _filled(label, crop, IGNORE_INDEX),
        (rows, columns),
    )


def _filled(window: UInt8[np.ndarray, "..."], crop: int, value: int) -> UInt8[np.ndarray, "..."]:
    rows, columns = window.shape[:2]
    if rows == columns == crop:
        return np.ascontiguousarray(window)
    whole = np.full((crop, crop, *window.shape[2:]), value, np.uint8)
    whole[:rows, :columns] = window
    return whole


def _is_plain_jpeg(data: bytes) -> bool:
    """A JPEG of three colours, whole from its first to its last marker, that needs no turning."""
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return False
    try:
        image = Image.open(io.BytesIO(data))  # reads the header alone
        return image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1
    except Exception:  # `open_upright` raises with the reason
        return False


def open_upright(data: bytes) -> tuple[Image.Image, str]:
    """An image file decoded and upright, and Pillow's name of the samples in it, such as "L;4".

    Raises:
      ValueError: bytes that are no complete image. Pillow reports broken files in many ways.
    """
    try:
        _verify(data)
        image = Image.open(io.BytesIO(data))
        stored = image.tile[0].args if image.tile else ""
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        raise ValueError(
            f"{len(data)} bytes that cannot be read as an image ({error}); replace the file"
        ) from error
    return image, str(stored[0] if isinstance(stored, tuple) else stored or "")


def _verify(data: bytes) -> None:
    """Raises where a checksum of a PNG is wrong; decoders pass over those of the pixels."""
    if data.startswith(deep_images.PNG):
        Image.open(io.BytesIO(data)).verify()


def _at_least_one(length: float) -> int:
    """Rounded; a thin image never loses its last row."""
    return max(int(length + 0.5), 1)


def check_pair(image: HostImage, label: HostLabel) -> None:
    """Image and label must have one size.

    Raises:
      ValueError: they differ.
    """
    if label.shape != image.shape[:2]:
        (rows, columns), (height, width) = label.shape, image.shape[:2]
        turned = " (perhaps only one of them was turned upright)" * (
            (columns, rows) == (height, width)
        )
        raise ValueError(
            f"label map of {columns}×{rows} pixels for an image of {width}×{height}{turned}; give both one "
            "size"
        )
