"""Pixel values to network inputs and back."""

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.models.normalization import denormalize, normalize, renormalize
from semivl_jax.types import CLIP_MEAN, CLIP_STD


def test_normalisation_and_its_inverse():
    image = jax.random.randint(jax.random.key(0), (2, 5, 4, 3), 0, 256).astype(jnp.uint8)
    there = normalize(image)
    assert there.dtype == jnp.float32
    np.testing.assert_array_equal(denormalize(there), image)
    expected = (np.asarray(image) / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(renormalize(there), expected, atol=1e-5)
