import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train.pseudo_labels import pseudo_labels


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pseudo_labels(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), dtype)
    made = jax.jit(pseudo_labels)(logits)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    np.testing.assert_array_equal(made.label, probabilities.argmax(-1))
    np.testing.assert_allclose(made.confidence, probabilities.max(-1), rtol=1e-6)


def test_no_gradient_reaches_the_teacher():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 3)), jnp.float32)
    grad = jax.grad(lambda x: pseudo_labels(x).confidence.sum())(logits)
    assert not grad.any()
