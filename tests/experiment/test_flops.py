"""Counted operations against closed forms and against XLA's own count of the same program."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from semivl_jax.experiment import flops


def counted(function, *args):
    return flops.of_traced(jax.jit(function).trace(*args))


def by_xla(function, *args):
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products():
    assert counted(jnp.matmul, zeros(5, 7), zeros(7, 3)) == 2 * 5 * 7 * 3
    heads = functools.partial(jnp.einsum, "bqhc,bkhc->bhqk")
    assert counted(heads, zeros(2, 9, 4, 8), zeros(2, 11, 4, 8)) == 2 * 2 * 4 * 9 * 11 * 8


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"window_strides": (1, 1), "padding": "VALID"}, (3, 3, 6, 10)),
        ({"window_strides": (2, 1), "padding": "SAME"}, (3, 5, 6, 10)),
        ({"window_strides": (1, 1), "padding": [(6, 6), (6, 6)], "rhs_dilation": (6, 6)}, (3, 3, 6, 10)),
        ({"window_strides": (1, 1), "padding": [(1, 2), (2, 1)], "lhs_dilation": (2, 2)}, (4, 4, 6, 10)),
        ({"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 3}, (3, 3, 2, 9)),
        ({"window_strides": (1, 1), "padding": "SAME", "batch_group_count": 2}, (3, 3, 6, 10)),
    ],
)  # fmt: skip
def test_convolutions_count_as_the_compiler_counts(options, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=layout, **options)
    args = zeros(4, 17, 19, 6), zeros(*kernel)
    assert counted(convolve, *args) == by_xla(convolve, *args)


def test_gradients_of_convolutions_count_as_the_compiler_counts():
    def total(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    args = zeros(4, 32, 32, 3), zeros(7, 7, 3, 16)
    forward = counted(total, *args)
    gradients = counted(jax.grad(total, argnums=(0, 1)), *args)
    # The compiler counts the sum and its gradient too: less than one operation per value of the output.
    values = 4 * 16 * 16 * 16
    assert 0 <= by_xla(total, *args) - forward <= values
    expected = by_xla(jax.grad(total, argnums=(0, 1)), *args)
    assert 0 <= expected - gradients <= 2 * values


def test_calls_loops_and_conditions():
    square = zeros(8, 8)
    once = 2 * 8**3

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]

    def choice(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert counted(jax.checkpoint(jax.jit(lambda x: x @ x)), square) == once
    assert counted(loop, square) == 5 * once
    assert counted(choice, square) == 2 * once
    assert counted(lambda x: x + 1, square) == 0


def test_branches_for_other_machines_count_once():
    def product(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x)

    assert counted(product, zeros(8, 8)) == 2 * 8**3


def test_fused_attention_counts_as_its_products(monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)

    def total(implementation, query, key):
        attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
        if implementation == "xla":  # cuDNN computes the scores again in the backward pass
            attend = jax.checkpoint(attend)
        return attend(query, key, key).astype(jnp.float32).sum()

    query, key = (jax.ShapeDtypeStruct((2, n, 3, 16), jnp.bfloat16) for n in (10, 12))
    xla, fused = (functools.partial(total, name) for name in ("xla", "cudnn"))
    assert counted(fused, query, key) == counted(xla, query, key) > 0
    gradients = functools.partial(jax.value_and_grad, argnums=(0, 1))
    assert counted(gradients(fused), query, key) == counted(gradients(xla), query, key)
