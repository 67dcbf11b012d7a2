"""Forms by platform, and attention head by head against the formula of attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import transformer
from semivl_jax.models.platforms import Derived, Recomputed, by_platform

SINE = functools.partial(by_platform, "tpu", Derived(jnp.cos), Derived(jnp.sin))


def test_other_machines_compute_the_default():
    x = jnp.linspace(0, 1, 5)
    np.testing.assert_allclose(jax.jit(SINE)(x), np.sin(x), atol=1e-6)
    gradient = jax.grad(lambda x: SINE(x).sum())(x)
    np.testing.assert_allclose(gradient, np.cos(x), atol=1e-6)


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


def softmax_attention(query, key, value):
    """The formula, in float64 by numpy."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


@pytest.fixture(params=["heads together", "heads in turn"])
def attend(request, monkeypatch):
    if request.param == "heads in turn":
        monkeypatch.setattr(transformer, "HEAD_BY_HEAD_BYTES", 0)
        special = functools.partial(by_platform, "cpu")
        monkeypatch.setattr(transformer, "by_platform", lambda _, *args: special(*args))
    return jax.jit(transformer.attend)


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
    kept = jax.eval_shape(lambda x: jax.vjp(transformer.attend, *x)[1], tokens)
    # Nothing but query, key and value.
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) == 3 * 600 * 12 * 64


def test_recomputing_forms_have_the_same_gradients():
    x = jnp.linspace(0, 1, 5)
    again = functools.partial(by_platform, "cpu", Recomputed(jnp.sin), Derived(jnp.cos))
    np.testing.assert_allclose(jax.grad(lambda x: again(x).sum())(x), np.cos(x), atol=1e-6)
