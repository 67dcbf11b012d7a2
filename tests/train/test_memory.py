"""What saves memory changes no result: making maps again, weights in half precision, blocks of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import resize
from semivl_jax.train import ema
from semivl_jax.train import step as step_lib
from semivl_jax.weights.tree import flatten
from tests.train.test_step import batch_of, build

REMAT = {"model__remat": "blocks", "vlg_decoder__remat": "blocks"}


def outcome(built):
    """Loss and gradients of the first step."""
    state = built.init_state()
    views, noise = jax.jit(functools.partial(step_lib.draw, built.parts))(state, batch_of(built))
    differentiate = jax.jit(functools.partial(step_lib.differentiate, built.parts))
    return differentiate(built.constants, state, views, noise)


@pytest.fixture(scope="module")
def plain():
    return outcome(build())


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-6)
    expected = flatten(theirs.gradients)
    for path, leaf in flatten(ours.gradients).items():
        scale = float(np.abs(expected[path]).max())
        np.testing.assert_allclose(leaf, expected[path], atol=1e-5 * scale + 1e-8, err_msg=path)


@pytest.mark.parametrize("fields", [REMAT, {"model__remat": "dots"}], ids=["blocks", "dots"])
def test_making_maps_again_changes_nothing(plain, fields):
    assert_same(outcome(build(**fields)), plain)


def test_logits_in_blocks_of_rows_change_nothing(plain, monkeypatch):
    monkeypatch.setattr(resize, "BLOCK_BYTES", 4 * 8 * 32 * 3 * 8)  # 8 of 32 rows
    assert_same(outcome(build()), plain)


@pytest.mark.parametrize("fields", [REMAT, {"model__remat": "dots"}], ids=["blocks", "dots"])
def test_more_is_made_again(fields):
    def count(**fields):
        built = build(**fields)
        step = functools.partial(step_lib.train_step, built.parts)
        state = jax.eval_shape(built.init_state)
        return str(jax.make_jaxpr(step)(built.constants, state, batch_of(built))).count("remat")

    assert count(**fields) > count()


def test_half_precision_of_frozen_weights_is_half_the_memory():
    built = build(model__guidance_dtype="bfloat16", method__ema_dtype="bfloat16")
    whole = build()
    for half, full in (
        (built.constants.guidance_params, whole.constants.guidance_params),
        (built.init_state().ema, whole.init_state().ema),
    ):
        for one, other in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
            assert one.dtype == jnp.bfloat16
            np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))
    step = jax.jit(functools.partial(step_lib.train_step, built.parts))
    state, metrics = step(built.constants, built.init_state(), batch_of(built))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state.ema))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.teacher()["params"]))
    assert np.isfinite(float(metrics["loss"]))


def test_a_half_precision_average_moves():
    """The average of a constant student after 500 steps, against the closed form; rounding to the nearest
    value stays where it began."""
    decay, steps, count = 0.996, 500, 4000
    start, goal = 1.0, 1.1
    expected = goal - (goal - start) * decay**steps
    student = {"w": jnp.full(count, goal)}

    def at_random(average, step):
        key = jax.random.fold_in(jax.random.key(0), step)
        return ema.ema_update(average, student, jnp.asarray(decay), key=key), None

    def to_nearest(average, _):
        mixed = decay * average.astype(jnp.float32) + (1 - decay) * student["w"]
        return mixed.astype(jnp.bfloat16), None

    begin = jnp.full(count, start, jnp.bfloat16)
    stuck, _ = jax.lax.scan(to_nearest, begin, jnp.arange(steps))
    np.testing.assert_array_equal(stuck, begin)
    moved, _ = jax.lax.scan(at_random, {"w": begin}, jnp.arange(steps))
    values = np.asarray(moved["w"], np.float32)
    error = values.std() / count**0.5
    assert abs(values.mean() - expected) < 4 * error
    assert values.std() < 0.02 * expected


def test_random_rounding_leaves_what_bfloat16_can_hold():
    average = jnp.asarray([0.0, -1.5, 3.0, 2.0**-20, -(2.0**20)], jnp.bfloat16)
    same = ema.ema_update(
        {"w": average}, {"w": average.astype(jnp.float32)}, jnp.asarray(0.5), key=jax.random.key(1)
    )
    np.testing.assert_array_equal(same["w"], average)
