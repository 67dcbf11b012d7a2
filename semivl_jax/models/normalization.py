"""Between pixel values and what networks are fed.

In and out: images ...×3, RGB. "pixels" are 0 … 255; "ImageNet-normalised" and "CLIP-normalised" are
float32, (pixels / 255 − mean) / std with the statistics of `types`, about −3 to 3.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from semivl_jax.types import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD


def normalize(image: UInt8[Array, "*b 3"] | Float[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """Pixels -> ImageNet-normalised."""
    return (image.astype(jnp.float32) / 255 - _along(IMAGENET_MEAN, image)) / _along(
        IMAGENET_STD, image
    )


def renormalize(image: Float[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """ImageNet-normalised -> CLIP-normalised (METHOD 6, "renorm")."""
    unit = image.astype(jnp.float32) * _along(IMAGENET_STD, image) + _along(IMAGENET_MEAN, image)
    return (unit - _along(CLIP_MEAN, image)) / _along(CLIP_STD, image)


def symmetric(image: Float[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """ImageNet-normalised -> pixels scaled to [-1, 1], as big_vision feeds its towers."""
    unit = image.astype(jnp.float32) * _along(IMAGENET_STD, image) + _along(IMAGENET_MEAN, image)
    return 2 * unit - 1


def _along(statistics: tuple[float, float, float], image: Array) -> np.ndarray:
    return np.asarray(statistics, np.float32).reshape((1,) * (image.ndim - 1) + (3,))
