"""Photos with more than 8 bits per sample, as 8-bit RGB.

In: encoded bytes, or samples [h, w] or [h, w, channels] of any number type. Out: uint8 RGB [h, w, 3].

Cameras and microscopes store 10, 12 or 14 bits in files of 16 or 32, often in the low bits. Samples are
therefore divided by the range that is used: the smallest of `BITS` that holds the largest sample of the
photo. Floating-point samples up to 1 are fractions of white.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Num, UInt8

BITS = (8, 10, 12, 14, 16, 20, 24, 32)
"""Ranges of samples that are told apart, in bits."""

PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_PNM = (b"P2", b"P3", b"P5", b"P6")


def deep_samples(data: bytes) -> Num[np.ndarray, "h w *channels"] | None:
    """Samples of an encoded photo that has more than 8 bits, grey or RGB as stored; None for others.

    Pillow keeps only the upper 8 of 16 bits of colour photos, so OpenCV reads them.
    """
    if data.startswith(PNG):
        may_be_deep = data[24:25] == b"\x10"
    else:
        may_be_deep = data.startswith((*_TIFF, *JPEG_2000, *_PNM))
    if not may_be_deep:
        return None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the caller raises
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if samples is None or samples.dtype in (np.uint8, np.int8):
        return None
    return samples if samples.ndim == 2 else samples[:, :, 2::-1]


def stored_bits(data: bytes) -> int:
    """8, or for a deep photo what its samples use (`used_bits`); ValueError as there."""
    samples = deep_samples(data)
    return 8 if samples is None else used_bits(samples)


def used_bits(samples: Num[np.ndarray, "..."]) -> int:
    """The smallest of `BITS` that holds the largest sample; 1 for fractions of white.

    Raises:
      ValueError: negative samples, or some that are no numbers.
    """
    low, high = samples.min(), samples.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high >= 2**32:
        raise ValueError(f"its samples are {low} … {high}; save it as 8-bit RGB")
    if samples.dtype.kind == "f" and high <= 1:
        return 1
    return next(bits for bits in BITS if int(high) < 2**bits)


def to_eight_bits(samples: Num[np.ndarray, "h w *channels"]) -> UInt8[np.ndarray, "h w 3"]:
    """Samples, grey or RGB, divided by the range that they use.

    Raises:
      ValueError: as `used_bits`.
    """
    bits = used_bits(samples)
    scaled = samples * 255.0 + 0.5 if bits == 1 else samples // 2 ** (bits - 8)
    scaled = scaled.astype(np.uint8)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[:, :, None], 3, axis=2)
