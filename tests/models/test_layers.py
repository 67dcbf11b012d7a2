import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.layers import Conv, l2_normalize
from tests.models.initialisation import random_variables


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("size", [1, 3])
def test_several_inputs_stand_for_their_concatenation(size):
    own, shared = normal(0, 6, 4, 5, 3), normal(1, 2, 4, 5, 2)
    joined = jnp.concatenate([own, jnp.repeat(shared, 3, axis=0)], axis=-1)
    layer = Conv(4, kernel_size=size, use_bias=True)
    variables = random_variables(layer, joined)
    expected = jax.jit(layer.apply)(variables, joined)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, own, shared), expected, atol=1e-5)


def test_a_pixel_is_spread_by_pointwise_kernels_only():
    x, pixel = normal(0, 2, 4, 5, 3), normal(1, 2, 1, 1, 2)
    joined = jnp.concatenate([x, jnp.broadcast_to(pixel, (2, 4, 5, 2))], axis=-1)
    layer = Conv(4, kernel_size=1)
    variables = random_variables(layer, joined)
    expected = jax.jit(layer.apply)(variables, joined)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x, pixel), expected, atol=1e-5)
    with pytest.raises(ValueError, match="resize the second"):
        jax.eval_shape(Conv(4).init, jax.random.key(0), x, pixel)


def test_normalising_a_zero_vector():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(l2_normalize(x), [[0, 0], [0.6, 0.8]], atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(x)).all()
