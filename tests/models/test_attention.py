"""Attention against its formula, and functions with a special form for one platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import attention
from semivl_jax.models.platforms import Derived, Recomputed, by_platform

SINE = functools.partial(by_platform, "tpu", Derived(jnp.cos), Derived(jnp.sin))


@pytest.mark.parametrize(
    ("platform", "value", "gradient"), [("tpu", "cos", "sin"), ("cpu", "sin", "cos")]
)
def test_programs_hold_the_form_of_their_platform_only(platform, value, gradient):
    x = jnp.ones(5)
    forward = jax.jit(SINE).trace(x).lower(lowering_platforms=(platform,)).as_text()
    backward = jax.jit(jax.grad(lambda x: SINE(x).sum())).trace(x)
    backward = backward.lower(lowering_platforms=(platform,)).as_text()
    names = {"sin": "stablehlo.sine", "cos": "stablehlo.cosine"}
    assert names[value] in forward and names[gradient] not in forward
    assert names[gradient] in backward


@pytest.mark.parametrize("special", [Derived, Recomputed])
def test_value_and_gradient_of_a_special_form(special):
    x = jnp.linspace(0, 1, 5)
    sine = functools.partial(by_platform, "cpu", special(jnp.sin), Derived(jnp.cos))
    np.testing.assert_allclose(jax.jit(sine)(x), np.sin(x), atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: sine(x).sum())(x), np.cos(x), atol=1e-6)


def softmax_attention(query, key, value):
    """The formula, in float64 by numpy."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


@pytest.fixture(params=["all heads", "head by head"])
def attend(request, monkeypatch):
    if request.param == "head by head":
        monkeypatch.setattr(attention, "HEAD_BY_HEAD_BYTES", 0)
        special = functools.partial(by_platform, "cpu")
        monkeypatch.setattr(attention, "by_platform", lambda _, *args: special(*args))
    return jax.jit(attention.attend)


def test_attention_is_that_of_the_formula(attend):
    tokens = jax.random.normal(jax.random.key(0), (3, 2, 9, 4, 8))
    np.testing.assert_allclose(attend(*tokens), softmax_attention(*tokens), atol=1e-6)
    weights = jax.random.normal(jax.random.key(1), tokens.shape[1:])
    gradient = jax.grad(lambda x: jnp.sum(attend(*x) * weights))(tokens)
    direction = np.asarray(jax.random.normal(jax.random.key(2), tokens.shape), np.float64)
    exact, weights = np.asarray(tokens, np.float64), np.asarray(weights, np.float64)
    slope = [
        np.sum(softmax_attention(*(exact + step * direction)) * weights) for step in (1e-4, -1e-4)
    ]
    expected = (slope[0] - slope[1]) / 2e-4
    np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-5)


def test_attention_weights_are_not_kept_for_the_backward_pass():
    tokens = jax.ShapeDtypeStruct((3, 1, 600, 12, 64), jnp.float32)
    kept = jax.eval_shape(lambda x: jax.vjp(attention.attend, *x)[1], tokens)
    # Nothing but query, key and value.
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) == 3 * 600 * 12 * 64
