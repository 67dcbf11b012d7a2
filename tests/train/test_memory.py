"""Rematerialisation changes no result; weights in half precision. Blocks of rows: test_losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.experiment import build_step
from semivl_jax.train import step as step_lib
from semivl_jax.train.augment import views as views_lib
from semivl_jax.weights.tree import flatten
from tests.train.tiny_experiment import batch_of, build

REMAT = {"model__remat": "blocks", "vlg_decoder__remat": "blocks"}


def gradients(built):
    """Loss and gradients of the first step."""
    views = jax.jit(views_lib.make_views)(jax.random.key(0), batch_of(built))
    compute = jax.jit(functools.partial(step_lib.compute_gradients, built.modules))
    return compute(built.frozen, built.init_state(), views, jax.random.key(1))


@pytest.fixture(scope="module")
def plain():
    return gradients(build(method="supervised"))


@pytest.mark.parametrize("fields", [REMAT, {"model__remat": "dots"}], ids=["blocks", "dots"])
def test_rematerialisation_is_more_and_changes_nothing(plain, fields):
    built = build(method="supervised", **fields)
    ours = gradients(built)
    np.testing.assert_allclose(ours.loss, plain.loss, rtol=1e-6)
    expected = flatten(plain.params)
    for path, leaf in flatten(ours.params).items():
        scale = float(np.abs(expected[path]).max())
        np.testing.assert_allclose(leaf, expected[path], atol=1e-5 * scale + 1e-8, err_msg=path)

    def count(built):
        step = functools.partial(step_lib.train_step, built.modules)
        batch = build_step.abstract_batch(built.config)
        return str(jax.make_jaxpr(step)(built.frozen, built.abstract_state(), batch)).count("remat")

    assert count(built) > count(build(method="supervised"))


def test_half_precision_of_frozen_weights_is_half_the_memory():
    built, whole = build(model__guidance_dtype="bfloat16"), build()
    half, full = (jax.tree.leaves(each.frozen.guidance_params) for each in (built, whole))
    for one, other in zip(half, full, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))
    step = functools.partial(step_lib.train_step, built.modules)
    batch = build_step.abstract_batch(built.config)
    jax.eval_shape(step, built.frozen, built.abstract_state(), batch)  # accepts these weights
