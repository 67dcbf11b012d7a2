"""Photometric distortion of supervised pipelines: brightness, contrast, and OpenCV's saturation and hue.

In and out: images float32 [b, h, w, 3], RGB, whole numbers in [0, 255]; one draw per image.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float32

Images = Float32[Array, "b h w 3"]


@struct.dataclass
class Distortion:
    """What happens to each image; 0, 1, 1 and 0 are the values that change nothing."""

    brightness: Float32[Array, " b"]  # added, in grey levels
    contrast: Float32[Array, " b"]  # multiplies all channels
    contrast_first: Bool[Array, " b"]  # before saturation and hue, or after them
    saturation: Float32[Array, " b"]  # multiplies
    hue: Float32[Array, " b"]  # added, in steps of 2 degrees


def photometric_distortion(images: Images, draw: Distortion) -> Images:
    """Brightness, then saturation and hue, with contrast before or after those two."""
    first = jnp.where(draw.contrast_first, draw.contrast, 1.0)
    last = jnp.where(draw.contrast_first, 1.0, draw.contrast)
    images = _truncate(images + _per_image(draw.brightness))
    images = _truncate(images * _per_image(first))
    images = _adjust_hsv(images, draw.saturation, jnp.zeros_like(draw.hue))
    images = _adjust_hsv(images, jnp.ones_like(draw.saturation), draw.hue)
    return _truncate(images * _per_image(last))


def _per_image(values: Float32[Array, " b"]) -> Float32[Array, "b 1 1 1"]:
    return values[:, None, None, None]


def _truncate(images: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    return jnp.floor(jnp.clip(images, 0.0, 255.0))


def _adjust_hsv(
    images: Images, saturation_factor: Float32[Array, " b"], hue_shift: Float32[Array, " b"]
) -> Images:
    """To OpenCV's 8-bit HSV (hue in [0, 180)) and back; images with nothing to adjust stay as they are."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = jnp.max(images, axis=-1)
    spread = value - jnp.min(images, axis=-1)
    sixths = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, 2.0 * spread + blue - red, 4.0 * spread + red - green),
    )
    hue = _fixed_point_product(sixths, 30.0, spread)
    saturation = _fixed_point_product(spread, 255.0, value)

    hue = jnp.mod(hue + hue_shift[:, None, None], 180.0)
    saturation = _truncate(saturation * saturation_factor[:, None, None])

    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = jnp.mod(hue / 30.0 + offset, 6.0)
        absent = jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)
        channels.append(jnp.floor(value * (1.0 - saturation / 255.0 * absent)))
    unchanged = (saturation_factor == 1.0) & (hue_shift == 0.0)
    return jnp.where(unchanged[:, None, None, None], images, jnp.stack(channels, axis=-1))


def _fixed_point_product(
    number: Float32[Array, "b h w"], scale: float, divisor: Float32[Array, "b h w"]
) -> Float32[Array, "b h w"]:
    """number · scale / divisor, rounded; the quotient scale / divisor has 12 binary places, as in OpenCV."""
    quotient = jnp.round(scale * 4096.0 / jnp.maximum(divisor, 1.0)).astype(jnp.int32)
    # Up to 2**28: whole numbers of this size need int32. The shift rounds downwards, also below 0.
    product = number.astype(jnp.int32) * quotient
    return ((product + 2048) >> 12).astype(jnp.float32)
