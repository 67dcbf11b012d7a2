"""Every form of convolution against XLA's own, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import conv, conv_cpu
from semivl_jax.models.layers import Upsampled


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def reference(x, kernel, stride=1, dilation=1):
    margin = kernel.shape[0] // 2 * dilation
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(margin, margin)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def assert_same(ours, theirs, *arguments):
    """Values, and gradients for a random gradient of the result."""
    expected, of_theirs = jax.vjp(theirs, *arguments)
    value, of_ours = jax.jit(lambda *a: jax.vjp(ours, *a))(*arguments)
    np.testing.assert_allclose(value, expected, atol=2e-5)
    out = normal(9, *expected.shape)
    for mine, other in zip(jax.jit(of_ours)(out), of_theirs(out), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 * max(1.0, float(abs(other).max())))


@pytest.mark.parametrize(
    ("size", "channels", "stride", "dilation"),
    [
        (1, (5, 4), 1, 1),  # a matrix product
        (1, (5, 4), 2, 1),
        (7, (1, 6), 1, 1),  # thin
        (3, (6, 1), 1, 1),
        (3, (5, 4), 1, 2),  # a product per tap
        (3, (5, 4), 1, 6),
        (3, (5, 4), 1, 30),  # only the centre is left
        (3, (5, 4), 1, 1),  # Winograd
        (3, (5, 4), 2, 1),  # XLA's own
        (5, (5, 4), 1, 1),
    ],
)
@pytest.mark.parametrize("grid", [(8, 6), (7, 9)])
def test_forms(size, channels, stride, dilation, grid):
    x, kernel = normal(0, 4, *grid, channels[0]), normal(1, size, size, *channels) / size
    assert_same(
        lambda x, k: conv.convolve(x, k, stride=stride, dilation=dilation),
        lambda x, k: reference(x, k, stride, dilation),
        x,
        kernel,
    )


@pytest.mark.parametrize(("images", "chunk"), [(6, 1), (5, 2 * 64 * 16 * 4)])
def test_images_in_groups(monkeypatch, images, chunk):
    monkeypatch.setattr(conv_cpu, "CHUNK_BYTES", chunk)
    x, kernel = normal(0, images, 8, 8, 4), normal(1, 3, 3, 4, 3) / 3
    text = jax.jit(conv.convolve).lower(x, kernel).as_text()
    assert "stablehlo.while" in text
    assert_same(conv.convolve, reference, x, kernel)


def test_the_upsampled_map_is_never_computed():
    x, up, bias = normal(0, 3, 5, 4, 6), normal(1, 2, 2, 6, 5), normal(2, 5)
    kernel = normal(3, 3, 3, 5, 4) / 3

    def apart(x, up, bias, kernel):
        return reference(Upsampled(x, up, bias).pixels(), kernel)

    def together(x, up, bias, kernel):
        return sum(Upsampled(x, up, bias).convolved(kernel))

    assert_same(together, apart, x, up, bias, kernel)
    text = jax.jit(together).lower(x, up, bias, kernel).as_text()
    assert "3x10x8x5xf32" not in text


def test_accelerators_get_the_plain_operation():
    x, kernel = jnp.ones((2, 8, 8, 4), jnp.float32), jnp.ones((3, 3, 4, 4), jnp.float32)

    def total(x, kernel):
        return conv.convolve(x, kernel).sum()

    traced = jax.jit(jax.grad(total, (0, 1))).trace(x, kernel)
    for platform, plain in {"cpu": False, "tpu": True, "cuda": True}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == plain, platform
        assert ("stablehlo.dot_general" in text) != plain, platform


def test_half_precision_is_not_transformed():
    x, kernel = jnp.ones((2, 8, 8, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4), jnp.bfloat16)
    assert "stablehlo.convolution" in jax.jit(conv.convolve).lower(x, kernel).as_text()


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 1), (3, 2, 3)]
)
@pytest.mark.parametrize("padding", ["SAME", "symmetric"])
def test_depthwise(size, stride, dilation, padding):
    x, kernel = normal(0, 3, 8, 11, 6), normal(1, size, size, 1, 6) / size
    margin, reach = dilation * (size // 2), dilation * (size - 1) + 1
    pads = ((margin, margin), (margin, margin))
    if padding == "SAME":
        pads = jax.lax.padtype_to_pads((8, 11), (reach, reach), (stride, stride), "SAME")
        pads = tuple(map(tuple, pads))

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=pads if padding == "symmetric" else "SAME",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
            precision=jax.lax.Precision.HIGHEST,
        )

    def ours(x, kernel):
        return conv.depthwise(x, kernel, stride=stride, dilation=dilation, padding=pads)

    assert_same(ours, reference, x, kernel)
    traced = jax.jit(jax.grad(lambda x, k: ours(x, k).sum(), (0, 1))).trace(x, kernel)
    for platform, plain in {"cpu": False, "tpu": True, "cuda": True}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == plain, platform
