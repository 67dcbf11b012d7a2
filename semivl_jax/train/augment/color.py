"""Colour operations on a batch, with the arithmetic of 8-bit image libraries.

In and out: images float32 [b, h, w, 3], RGB, whole numbers in [0, 255]; one factor per image, float32 [b].
Every operation rounds its result as Pillow does with 8-bit images (blends truncate, grey and hue
round), so that a chain of them gives what the published input pipeline gave. All are pure
functions of an image and its own factors: nothing is shared between the images of a batch.

Source: docs/semivl.md 6 (strong views) and 9.18.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from semivl_jax.types import Key

# Names of the operations by the index that `Jitter.order` uses.
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
_HUE = OPERATIONS.index("hue")
_ORDERS = tuple(itertools.permutations(range(len(OPERATIONS))))

Images = Float32[Array, "b h w 3"]
Factors = Float[Array, " b"]


@struct.dataclass
class Jitter:
    """What colour jitter does to each image; factors (1, 1, 1) and hue 0 still pass through 8-bit HSV."""

    brightness: Float32[Array, " b"]
    contrast: Float32[Array, " b"]
    saturation: Float32[Array, " b"]
    hue: Float32[Array, " b"]  # in turns of the colour circle, [-0.5, 0.5]
    order: Int32[Array, "b 4"]  # indices into OPERATIONS, first to last


def draw_jitter(
    key: Key, count: int, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Jitter:
    """Factors U(1 - v, 1 + v), hue U(-hue, hue) and a random order, independently for each image."""
    # One call for all numbers: entry [i, j] depends on the key, i and j, not on the batch's size.
    draws = jax.random.uniform(key, (count, 5))

    def between(column: int, low: float, high: float) -> Float32[Array, " b"]:
        return low + draws[:, column] * (high - low)

    orders = jnp.asarray(_ORDERS, jnp.int32)
    return Jitter(
        brightness=between(0, max(0.0, 1.0 - brightness), 1.0 + brightness),
        contrast=between(1, max(0.0, 1.0 - contrast), 1.0 + contrast),
        saturation=between(2, max(0.0, 1.0 - saturation), 1.0 + saturation),
        hue=between(3, -hue, hue),
        order=orders[(draws[:, 4] * len(_ORDERS)).astype(jnp.int32)],
    )


def color_jitter(images: Images, jitter: Jitter) -> Images:
    """The four operations in each image's own order.

    Three of them are cheap blends; hue is expensive. So hue is computed once, with all blends before and
    after it, of which those on the other side have the factor 1.
    """
    hue_at = jnp.argmax(jitter.order == _HUE, axis=1)
    blend_factors = jnp.stack([jitter.brightness, jitter.contrast, jitter.saturation], axis=1)
    steps = jnp.arange(len(OPERATIONS) - 1)
    # The operations other than hue, in order: those behind hue move up by one place.
    places = steps[None, :] + (steps[None, :] >= hue_at[:, None])
    which = jnp.take_along_axis(jitter.order, places, axis=1)
    factors = jnp.take_along_axis(blend_factors, which, axis=1)

    first = jnp.where(steps[None, :] < hue_at[:, None], factors, 1.0)
    last = jnp.where(steps[None, :] < hue_at[:, None], 1.0, factors)
    return _blend_all(adjust_hue(_blend_all(images, which, first), jitter.hue), which, last)


def adjust_brightness(images: Images, factor: Factors) -> Images:
    """Blend with black: 0 gives black, 1 the image, more a brighter one."""
    return _blend(images, jnp.zeros_like(images), factor)


def adjust_contrast(images: Images, factor: Factors) -> Images:
    """Blend with the image's mean grey level, rounded to a whole number."""
    return _blend(images, _mean_level(grayscale(images)), factor)


def adjust_saturation(images: Images, factor: Factors) -> Images:
    """Blend with the grey image."""
    return _blend(images, grayscale(images), factor)


def grayscale(images: Images) -> Images:
    """Luma of ITU-R 601 in all three channels."""
    # Weights in 1/65536 as Pillow has them; all sums stay below 2**24 and are exact in float32.
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    luma = jnp.floor((red * 19595.0 + green * 38470.0 + blue * 7471.0 + 32768.0) / 65536.0)
    return jnp.broadcast_to(luma[..., None], images.shape)


def adjust_hue(images: Images, turns: Factors) -> Images:
    """Rotate the hue; through 8-bit HSV, so that a rotation by 0 also moves colours by a few levels.

    The hue circle has 255 steps where colours are converted and 256 where it is rotated, as published.
    """
    shift = jnp.trunc(turns * 255.0)
    hue, saturation, value = _to_hsv(images)
    hue = jnp.mod(hue + shift[:, None, None], 256.0)
    return _from_hsv(hue, saturation, value)


def _blend_all(
    images: Images, which: Int32[Array, "b k"], factors: Float32[Array, "b k"]
) -> Images:
    """Blends one after another; a loop, because fused blends would each compute the previous ones again."""

    def step(now: Images, blend: tuple[Array, Array]) -> tuple[Images, None]:
        which, factor = blend
        return _blend(now, _reference(now, which), factor), None

    return lax.scan(step, images, (which.T, factors.T))[0]


def _reference(images: Images, which: Int32[Array, " b"]) -> Images:
    """What each image is blended with: black (0), its mean grey level (1), its grey image (2)."""
    gray = grayscale(images)
    which = which[:, None, None, None]
    return jnp.where(which == 0, 0.0, jnp.where(which == 1, _mean_level(gray), gray))


def _mean_level(gray: Images) -> Float32[Array, "b 1 1 1"]:
    mean = jnp.mean(gray[..., 0], axis=(1, 2))
    return jnp.floor(mean + 0.5)[:, None, None, None]


def _blend(images: Images, reference: Float32[Array, "b ..."], factor: Factors) -> Images:
    factor = factor[:, None, None, None]
    # Compilers may fuse multiply and add and round once instead of twice: whole numbers then come out a
    # little lower and a level is lost here and there (measured: below 0.3 % of the values).
    blended = jnp.floor(jnp.clip(reference + factor * (images - reference), 0.0, 255.0))
    # An image without this operation must not change.
    return jnp.where(factor == 1.0, images, blended)


def _to_hsv(images: Images) -> tuple[Array, Array, Array]:
    """Hue, saturation and value [b, h, w] as whole numbers in [0, 255]."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    high, low = jnp.max(images, axis=-1), jnp.min(images, axis=-1)
    spread = high - low
    colourless = spread == 0
    divisor = jnp.where(colourless, 1.0, spread)
    # Distances of each channel from the highest, one by one: their rounding decides the hue's.
    reds, greens, blues = ((high - channel) / divisor for channel in (red, green, blue))
    sixths = jnp.where(
        red == high,
        blues - greens,
        jnp.where(green == high, 2.0 + reds - blues, 4.0 + greens - reds),
    )
    turns = jnp.where(sixths < 0, 1.0 + sixths / 6.0, sixths / 6.0)
    hue = jnp.where(colourless, 0.0, _floor_of_255_times(turns))
    return hue, _floor_of_255_times(spread / jnp.maximum(high, 1.0)), high


def _floor_of_255_times(share: Float32[Array, "b h w"]) -> Float32[Array, "b h w"]:
    """floor(255 · share) of the unrounded product, for shares in [0, 1].

    Flat colours often have products that are whole but for the rounding of `share`; which side they
    fall on decides a whole step of hue.
    """
    whole = jnp.floor(share * 255.0)
    # The product may have been rounded up to a whole number. 256 · share - whole is exact.
    return jnp.where(share * 256.0 - whole < share, whole - 1.0, whole)


def _from_hsv(hue: Array, saturation: Array, value: Array) -> Images:
    sixths, strength = hue * (6.0 / 255.0), saturation / 255.0
    channels = []
    # A channel is full over one third of the circle, absent over another and a ramp between.
    for offset in (5.0, 3.0, 1.0):
        place = jnp.mod(sixths + offset, 6.0)
        absent = jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)
        channels.append(jnp.floor(value * (1.0 - strength * absent) + 0.5))
    return jnp.stack(channels, axis=-1)
