"""What saves memory changes no result: rematerialisation, weights in half precision, blocks of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import resize
from semivl_jax.train import step as step_lib
from semivl_jax.train.augment import views as views_lib
from semivl_jax.weights.tree import flatten
from tests.train.tiny_experiment import batch_of, build, step_of

REMAT = {"model__remat": "blocks", "vlg_decoder__remat": "blocks"}


def gradients(built):
    """Loss and gradients of the first step."""
    views = jax.jit(views_lib.make_views)(jax.random.key(0), batch_of(built))
    compute = jax.jit(functools.partial(step_lib.compute_gradients, built.modules))
    return compute(built.frozen, built.init_state(), views, jax.random.key(1))


@pytest.fixture(scope="module")
def plain():
    return gradients(build())


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-6)
    expected = flatten(theirs.params)
    for path, leaf in flatten(ours.params).items():
        scale = float(np.abs(expected[path]).max())
        np.testing.assert_allclose(leaf, expected[path], atol=1e-5 * scale + 1e-8, err_msg=path)


@pytest.mark.parametrize("fields", [REMAT, {"model__remat": "dots"}], ids=["blocks", "dots"])
def test_rematerialisation_changes_nothing(plain, fields):
    assert_same(gradients(build(**fields)), plain)


def test_logits_in_blocks_of_rows_change_nothing(plain, monkeypatch):
    monkeypatch.setattr(resize, "BLOCK_BYTES", 4 * 8 * 32 * 3 * 8)  # 8 of 32 rows
    assert_same(gradients(build()), plain)


@pytest.mark.parametrize("fields", [REMAT, {"model__remat": "dots"}], ids=["blocks", "dots"])
def test_more_is_rematerialised(fields):
    def count(**fields):
        built = build(**fields)
        step = functools.partial(step_lib.train_step, built.modules)
        state = jax.eval_shape(built.init_state)
        return str(jax.make_jaxpr(step)(built.frozen, state, batch_of(built))).count("remat")

    assert count(**fields) > count()


def test_half_precision_of_frozen_weights_is_half_the_memory():
    built, whole = build(model__guidance_dtype="bfloat16"), build()
    half, full = (jax.tree.leaves(each.frozen.guidance_params) for each in (built, whole))
    for one, other in zip(half, full, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))
    _, metrics = step_of(built)(built.init_state(), batch_of(built))
    assert np.isfinite(float(metrics["loss"]))
