"""Mask files to label maps: indices as they are stored, or a colour per class.

In: encoded bytes. Out: uint8 [h, w], class indices, 255 = void.

Indices are the samples of the file: Pillow spreads grey samples of 2 and 4 bits over 0 … 255 and inverts
those of TIFF files in which 0 is white, which is undone here. Errors do not name the file: the caller adds
its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semivl_jax.data import images
from semivl_jax.data.class_files import Colour
from semivl_jax.data.dataset_info import IGNORE_INDEX

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
"""Suffixes of mask files. Other formats change the values, scale them, or reorder their palette (GIF)."""


def decode_label(data: bytes) -> images.HostLabel:
    """The palette indices or the grey values of a label file.

    Raises:
      ValueError: bytes that are no complete image, a colour image, or values beyond 255.
    """
    image, stored = images.open_upright(data)
    if image.mode == "P":
        return np.asarray(image)
    if image.mode in ("L", "1"):
        return _grey_samples(np.asarray(image).astype(np.uint8, copy=False), stored)
    if image.mode in images.DEEP_MODES and image.mode != "F":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 255:
            raise ValueError(
                f"label map with the values {values.min()} … {values.max()}; class indices must be 0 … 254, "
                "and 255 where nothing is labelled"
            )
        return values.astype(np.uint8)
    raise ValueError(
        f"label map of mode {image.mode}, that is colours instead of class indices; save one channel "
        "(grey or palette) whose values are the indices, or write the colour of every class into "
        "classes.txt: name #RRGGBB"
    )


def decode_colours(data: bytes, colours: Mapping[Colour, int]) -> images.HostLabel:
    """The classes of a mask file's colours; `colours` are label values by RGB colour.

    Grey masks hold indices, unless every colour is grey; so do palettes in which colour i is (i, i, i).
    Pixels that are wholly transparent are void.

    Raises:
      ValueError: a colour that is not in the list, half transparent pixels, or as `decode_label`.
    """
    image, _ = images.open_upright(data)
    grey = all(red == green == blue for red, green, blue in colours)
    if image.mode in ("1", "L"):
        if not grey:
            return decode_label(data)
    elif image.mode == "P":
        if _is_grey_ramp(image) and not grey:
            return decode_label(data)
    elif image.mode not in ("RGB", "RGBA", "LA", "PA"):
        return decode_label(data)
    opaque = _opaque(image)
    label = _by_colour(np.asarray(image.convert("RGB")), opaque, colours)
    label[~opaque] = IGNORE_INDEX
    return label


def transparent_pixels(data: bytes) -> int:
    """Pixels of a mask file that are wholly transparent."""
    return int((~_opaque(images.open_upright(data)[0])).sum())


def _grey_samples(values: UInt8[np.ndarray, "h w"], stored: str) -> UInt8[np.ndarray, "h w"]:
    """Samples of the file from the grey values that Pillow makes of them; `stored` is its raw mode."""
    found = re.fullmatch(r"(?:L|1)(?:;([24]))?(?:;?(I)?R?)?", stored)
    bits = int(found[1] or 8) if found else 8
    highest = 1 if values.dtype == bool or stored.startswith("1") else 2**bits - 1
    if bits < 8:
        values = values // (255 // highest)
    return highest - values if found and found[2] else values


def _is_grey_ramp(image: Image.Image) -> bool:
    colours = np.asarray(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
    return bool((colours == np.arange(len(colours), dtype=np.uint8)[:, None]).all())


def _opaque(image: Image.Image) -> np.ndarray:
    """Which pixels are opaque, bool [h, w]; ValueError where some are half transparent."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return np.ones(image.size[::-1], bool)
    alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
    half = int(((alpha > 0) & (alpha < 255)).sum())
    if half:
        raise ValueError(
            f"colour mask with {half} half transparent pixels, whose colours are mixed; save it without "
            "transparency and without smooth edges"
        )
    return alpha == 255


def _by_colour(
    pixels: UInt8[np.ndarray, "h w 3"], opaque: np.ndarray, colours: Mapping[Colour, int]
) -> UInt8[np.ndarray, "h w"]:
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    values = {(r << 16) + (g << 8) + b: value for (r, g, b), value in colours.items()}
    unknown = np.array([code not in values for code in found])
    unknown &= np.isin(found, codes[opaque])
    if unknown.any():
        most = found[unknown][counts[unknown].argmax()]
        share = 100 * counts[unknown].sum() / codes.size
        more = int(unknown.sum()) - 1
        others = f" and {more} more" if more else ""
        raise ValueError(
            f"colour mask with the colour #{most:06x}{others} ({share:.3g} % of its pixels), which no class "
            "has; add `name #RRGGBB` for it, or `__ignore__ #RRGGBB` for what does not count, or save masks "
            "without smooth edges"
        )
    table = np.array([values.get(int(code), IGNORE_INDEX) for code in found], np.uint8)
    return table[inverse.reshape(codes.shape)]
