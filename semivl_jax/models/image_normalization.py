"""Normalisation of images.

In and out: images ...×3, RGB. "Pixels" are 0 … 255; "ImageNet-normalised" and "CLIP-normalised" are
float32, (pixels / 255 − mean) / std with the statistics of `types`, about −3 to 3.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from semivl_jax.types import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD


def normalize(image: UInt8[Array, "*b 3"] | Float[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """Pixels -> ImageNet-normalised."""
    unit = image.astype(jnp.float32) / 255
    return (unit - _along(IMAGENET_MEAN, image)) / _along(IMAGENET_STD, image)


def renormalize(image: Float[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """ImageNet-normalised -> CLIP-normalised (docs/semivl.md 6, "renorm")."""
    return (_unit(image) - _along(CLIP_MEAN, image)) / _along(CLIP_STD, image)


def symmetric(image: Float[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """ImageNet-normalised -> pixels scaled to [-1, 1], the input of big_vision's towers."""
    return 2 * _unit(image) - 1


def efficientnet_lite(image: Float[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """ImageNet-normalised -> (pixels − 127) / 128, the input of TensorFlow's EfficientNet-Lite."""
    return (255 * _unit(image) - 127) / 128


def _unit(image: Array) -> Array:
    """ImageNet-normalised -> pixels scaled to [0, 1]."""
    return image.astype(jnp.float32) * _along(IMAGENET_STD, image) + _along(IMAGENET_MEAN, image)


def _along(statistics: tuple[float, float, float], image: Array) -> np.ndarray:
    return np.asarray(statistics, np.float32).reshape((1,) * (image.ndim - 1) + (3,))
