"""Pixel values to network inputs."""

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.models.normalization import normalize, renormalize
from semivl_jax.types import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD


def test_both_normalisations():
    image = jax.random.randint(jax.random.key(0), (2, 5, 4, 3), 0, 256).astype(jnp.uint8)
    there = normalize(image)
    assert there.dtype == jnp.float32
    expected = (np.asarray(image) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(there, expected, atol=1e-5)
    expected = (np.asarray(image) / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(renormalize(there), expected, atol=1e-5)
