"""The training step as two programs: together they are the step, they are kept, and say what they take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax import compilation
from semivl_jax.train import programs
from semivl_jax.train import step as step_lib
from tests.train.test_step import batch_of, build


@pytest.fixture(scope="module")
def built():
    """The step that compiles fastest, with SGD, whose steps are as exact as the gradients, unlike Adam's."""
    return build(optim__name="sgd", method__semi_supervised=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def first(built, folder):
    """The step that the first start compiles and keeps, and the line about it."""
    return compiled(built, folder)


def compiled(built, folder):
    state, batch = built.abstract_state(), built.abstract_batch()
    kept = compilation.read_step(str(folder), "run", built.mesh.devices.ravel().tolist())
    step = programs.Step(built.parts, built.mesh, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "_WORTHWHILE_S", -1.0)
        return step.compile(built.constants, state, batch, kept=kept)


def size(*trees):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def test_two_programs_do_what_one_does_also_when_they_are_read(built, first, folder):
    batch = batch_of(built)
    whole = jax.jit(functools.partial(step_lib.train_step, built.parts))
    expected, theirs = whole(built.constants, built.init_state(), batch)
    again = compiled(built, folder)
    assert first[1].count("compiled") == 2
    assert again[1].count(", read in") == 2 and "compiled" not in again[1]
    for step, _ in (first, again):
        before = built.init_state()
        after, metrics = step(built.constants, before, batch)
        assert metrics.keys() == theirs.keys()
        assert float(metrics["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-5)
        for ours, other in zip(*map(jax.tree.leaves, (after, expected)), strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-5, rtol=0)
        assert int(after.step) == 1
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.trained))


def test_what_rests_on_a_device_is_counted_once(built, first):
    """Constants, state and batch, also what only the update uses of them, and the gradients."""
    state, batch = built.abstract_state(), built.abstract_batch()
    find = functools.partial(step_lib.find_outcome, built.parts)
    outcome = jax.eval_shape(find, built.constants, state, batch)
    table = 8 * len(jax.tree.leaves(outcome))  # where the results lie
    memory = first[0].memory()
    resting = size(built.constants, state, batch, outcome) + table
    assert memory.total - memory.temporary == resting
    assert size(state.opt_state) >= size(state.trained) == size(outcome.gradients)
    assert memory.temporary > 0
    assert f"{memory.total / 2**30:.2f} GiB per device" in first[1]
    assert f"{memory.temporary / 2**30:.2f} of them temporary" in first[1]


def test_operations_are_those_of_both_programs():
    """A matrix product of 2·64³ operations, then one operation for each of 64² numbers."""
    matrix = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    sums = jax.jit(jnp.add).lower(matrix, matrix).compile()
    step = programs.CompiledStep(product, sums)
    assert step.operations() == 2 * 64**3 + 64**2
    assert step.described().startswith(f"{(2 * 64**3 + 64**2) / 1e9:.4g} GFLOP; ")
