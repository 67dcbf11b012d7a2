import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.layers import BatchNorm, Conv, l2_normalize
from tests.models.drawn import drawn


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("size", [1, 3])
def test_several_inputs_stand_for_their_concatenation(size):
    own, shared = normal(0, 6, 4, 5, 3), normal(1, 2, 4, 5, 2)
    joined = jnp.concatenate([own, jnp.repeat(shared, 3, axis=0)], axis=-1)
    layer = Conv(4, kernel_size=size, use_bias=True)
    variables = drawn(layer, joined)
    expected = jax.jit(layer.apply)(variables, joined)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, own, shared), expected, atol=1e-5)


def test_a_pixel_is_spread_by_pointwise_kernels_only():
    x, pixel = normal(0, 2, 4, 5, 3), normal(1, 2, 1, 1, 2)
    joined = jnp.concatenate([x, jnp.broadcast_to(pixel, (2, 4, 5, 2))], axis=-1)
    layer = Conv(4, kernel_size=1)
    variables = drawn(layer, joined)
    expected = jax.jit(layer.apply)(variables, joined)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x, pixel), expected, atol=1e-5)
    with pytest.raises(ValueError, match="resize the second"):
        jax.eval_shape(Conv(4).init, jax.random.key(0), x, pixel)


@pytest.mark.parametrize(("dilation", "stride"), [(1, 1), (2, 1), (4, 1), (9, 1), (1, 2)])
def test_leaving_out_taps_in_the_padding_changes_nothing(dilation, stride):
    x = normal(0, 1, 4, 7, 2)
    layer = Conv(3, kernel_size=3, dilation=dilation, stride=stride)
    variables = drawn(layer, x)
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        window_strides=(stride, stride),
        padding=[(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_normalising_a_zero_vector():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(l2_normalize(x), [[0, 0], [0.6, 0.8]], atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(x)).all()


def test_running_statistics():
    x = normal(0, 2, 3, 3, 4) * 2 + 1
    norm = BatchNorm()
    variables = {
        "params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    }
    out, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 4)
    np.testing.assert_allclose(np.asarray(out).reshape(-1, 4).std(0), 1, atol=1e-4)
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    same, state = norm.apply(variables, x, train=False, mutable=["batch_stats"])
    np.testing.assert_allclose(same, x, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
