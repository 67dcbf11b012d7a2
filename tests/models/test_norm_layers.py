"""Normalisation of pixels and of maps against closed forms and Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from semivl_jax.models.image_normalization import normalize, renormalize, symmetric
from semivl_jax.models.norm_layers import GROUP_SIZE, BatchNorm, group_norm
from semivl_jax.types import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_pixels_become_what_each_network_is_fed():
    image = jax.random.randint(jax.random.key(0), (2, 5, 4, 3), 0, 256).astype(jnp.uint8)
    there, unit = normalize(image), np.asarray(image) / 255
    assert there.dtype == jnp.float32
    np.testing.assert_allclose(there, (unit - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-5)
    np.testing.assert_allclose(renormalize(there), (unit - CLIP_MEAN) / CLIP_STD, atol=1e-5)
    np.testing.assert_allclose(symmetric(there), 2 * unit - 1, atol=1e-6)


def batch_norm(x, **options):
    variables = {
        "params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    }
    return BatchNorm().apply(variables, x, mutable=["batch_stats"], **options)


def test_running_statistics():
    x = normal(0, 2, 3, 3, 4) * 2 + 1
    out, state = batch_norm(x, train=True)
    flat = np.asarray(x).reshape(-1, 4)
    np.testing.assert_allclose(np.asarray(out).reshape(-1, 4).std(0), 1, atol=1e-4)
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    same, state = batch_norm(x, train=False)
    np.testing.assert_allclose(same, x, rtol=1e-4)
    np.testing.assert_array_equal(state["batch_stats"]["mean"], np.zeros(4))


def test_statistics_are_those_of_the_global_batch():
    x = normal(1, 8, 4, 4, 4)
    train = jax.jit(lambda x: batch_norm(x, train=True))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole, sharded = train(x), train(jax.device_put(x, NamedSharding(mesh, P("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, sharded)


def test_one_value_per_channel_cannot_be_trained():
    with pytest.raises(ValueError, match="one value per channel"):
        batch_norm(jnp.zeros((1, 1, 1, 4)), train=True)


@pytest.mark.parametrize("relu", [False, True])
def test_group_norm(relu):
    x = normal(0, 3, 5, 4, 2 * GROUP_SIZE) * 3 + 7
    scale, bias = 1 + normal(1, 2 * GROUP_SIZE), normal(2, 2 * GROUP_SIZE)
    layer = nn.GroupNorm(num_groups=2, epsilon=1e-5, use_fast_variance=False)

    def linen(x, scale, bias):
        out = layer.apply({"params": {"scale": scale, "bias": bias}}, x)
        return nn.relu(out) if relu else out

    def ours(x, scale, bias):
        return group_norm(x, scale, bias, relu)

    expected, of_theirs = jax.vjp(linen, x, scale, bias)
    value, of_ours = jax.vjp(ours, x, scale, bias)
    np.testing.assert_allclose(value, expected, atol=2e-5)
    out = normal(9, *expected.shape)
    for mine, other in zip(of_ours(out), of_theirs(out), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 * max(1.0, float(abs(other).max())))
