"""Resizing and pooling: torch's numbers and properties of interpolations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.resize import avg_pool, bicubic, bilinear, resize_matrix
from tests.golden_files import Golden, assert_close, files, nhwc

METHODS = [("bilinear", True), ("bilinear", False), ("bicubic", False)]


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def apply(case, x):
    if case["op"] == "interpolate":
        corners = bool(case["align_corners"])
        if case["mode"] == "bicubic":
            assert not corners
            return bicubic(x, pair(case["size"]))
        assert case["mode"] == "bilinear"
        return bilinear(x, pair(case["size"]), align_corners=corners)
    if case["op"] == "avg_pool2d":
        assert case["stride"] == case["kernel"]
        return avg_pool(x, pair(case["kernel"]))
    if case["op"] == "adaptive_avg_pool2d":
        assert case["output"] == 1
        return x.mean(axis=(1, 2), keepdims=True)
    assert case["op"] == "max_pool2d"
    padding = tuple((side, side) for side in pair(case["padding"]))
    return nn.max_pool(x, pair(case["kernel"]), pair(case["stride"]), padding)


@pytest.mark.golden
@pytest.mark.parametrize("file", files("resize*"))
def test_every_operator_gives_the_published_numbers(file):
    golden = Golden(file)
    assert golden.meta["cases"]
    for case in golden.meta["cases"]:
        name = case["name"]
        out = jax.jit(lambda x, case=case: apply(case, x))(nhwc(golden[f"in/{name}"]))
        assert_close(out, nhwc(golden[f"out/{name}"]), 1e-5, name)


@pytest.mark.parametrize(("method", "align_corners"), METHODS)
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 5), (5, 1), (7, 7), (6, 17), (50, 13)])
def test_rows_of_the_matrix_sum_to_one(method, align_corners, n_in, n_out):
    matrix = resize_matrix(n_in, n_out, method=method, align_corners=align_corners)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    if n_in == n_out:
        np.testing.assert_array_equal(matrix, np.eye(n_in))


def test_dtype_stays_and_bfloat16_is_close():
    x = jax.random.normal(jax.random.key(0), (1, 6, 4, 3))
    exact = bilinear(x, (11, 9), align_corners=False)
    half = bilinear(x.astype(jnp.bfloat16), (11, 9), align_corners=False)
    assert exact.dtype == jnp.float32
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.03)


def test_a_map_smaller_than_the_window_is_an_error():
    with pytest.raises(ValueError, match="3×8 is smaller than the pooling window 4×4"):
        avg_pool(jnp.zeros((1, 3, 8, 2)), (4, 4))


def test_a_length_of_zero_is_an_error():
    with pytest.raises(ValueError, match="cannot resize 4 samples to 0"):
        resize_matrix(4, 0, method="bilinear", align_corners=False)
