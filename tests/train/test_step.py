"""Behaviour of the training step beyond the published numbers, on the smallest model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.experiment import build_step
from semivl_jax.models import segmentation_model as segmenter_lib
from semivl_jax.train import step as step_lib
from semivl_jax.train.augment import views as views_lib
from semivl_jax.weights.tree import flatten
from tests.train.tiny_experiment import batch_of, build, step_of

DEEPLAB = {"model__decoder": "deeplab", "model__out_indices": (1, 2)}


@pytest.fixture(scope="module")
def default():
    """The experiment and the step of the configuration as it is, compiled once."""
    built = build()
    return built, step_of(built)


def test_steps_are_finite_even_without_a_labelled_or_confident_pixel(default):
    """Criteria other than the default's: test_losses."""
    built, step = default
    state = built.init_state()
    before = jax.device_get(state.params)
    for t, label in enumerate((None, 255)):
        state, metrics = step(state, batch_of(built, label=label, seed=t))
        values = jax.device_get(metrics)
        assert all(np.isfinite(value) for value in values.values()), values
    assert values["loss_x"] == 0.0
    assert values["skipped"] == 0
    assert values["confident"] == 0.0 and values["loss_s1"] == 0.0
    for path, leaf in flatten(state.params).items():
        assert np.isfinite(np.asarray(leaf)).all(), path
    assert int(state.step) == 2
    moved = [
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, state.params)), strict=True)
    ]
    assert np.mean(moved) > 0.8  # all but leaves whose gradient is zero


def test_average_follows_the_student(default):
    built, step = default
    state = built.init_state()
    state, _ = step(state, batch_of(built, seed=0))
    # The first decay is 0: the average is the student after one step.
    for path, leaf in flatten(state.ema_params).items():
        np.testing.assert_array_equal(leaf, flatten(state.params)[path], err_msg=path)
    first = jax.device_get(state.params)
    state, _ = step(state, batch_of(built, seed=1))
    for path, leaf in flatten(state.ema_params).items():
        expected = 0.5 * flatten(first)[path] + 0.5 * np.asarray(flatten(state.params)[path])
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-9, err_msg=path)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(default):
    built, step = default
    state = built.init_state()
    batch = batch_of(built)
    name = next(iter(state.params["decoder"]["conv1"]))
    poisoned = jax.tree.map(jnp.copy, state)
    poisoned.params["decoder"]["conv1"][name] *= jnp.nan
    before = jax.device_get(poisoned)
    for count in (1, 2):
        poisoned, metrics = step(poisoned, batch)
        assert int(metrics["skipped"]) == count
    after = jax.device_get(poisoned)
    assert after.step == 2
    for part in ("params", "opt_state", "ema_params"):
        old, new = (jax.tree.leaves(getattr(tree, part)) for tree in (before, after))
        for one, other in zip(old, new, strict=True):
            np.testing.assert_array_equal(one, other)
    state, metrics = step(state, batch)
    assert int(metrics["skipped"]) == 0


def test_the_reversed_batch_as_partner_is_that_partner_given_as_a_crop():
    student = {
        "method": "fixmatch",
        "method__teacher": "student",
        "method__confidence_mode": "pixelavg",
    }
    built = build(**student)
    explicit = build(**student, method__cutmix_partner="same_image")
    state, batch = built.init_state(), batch_of(built)
    views = jax.jit(views_lib.make_views)(jax.random.key(0), batch)
    own = views.streams["unlabelled"]
    partner = jax.tree.map(lambda leaf: leaf[::-1], own)
    given = views.replace(streams={"unlabelled": own, "unlabelled.1": partner})
    one, other = (
        jax.jit(functools.partial(step_lib.compute_gradients, each.modules))(
            each.frozen, state, seen, jax.random.key(1)
        )
        for each, seen in ((built, views), (explicit, given))
    )
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)
    for path, leaf in flatten(one.params).items():
        expected = np.asarray(flatten(other.params)[path])
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-6, err_msg=path)


def test_one_device_and_eight_devices_agree_with_batch_statistics():
    """Which are those of the whole batch; models without: test_meshes."""
    results = []
    for devices in (1, 8):
        # SGD: Adam amplifies the rounding of small gradients.
        built = build(devices, method="unimatch", optim__name="sgd", **DEEPLAB)
        step, state = step_of(built), built.init_state()
        start, losses = jax.device_get(flatten(state.params)), []
        for t in range(2):
            state, metrics = step(state, batch_of(built, seed=t))
            losses.append(float(metrics["loss"]))
        moved = {path: leaf - start[path] for path, leaf in flatten(state.params).items()}
        results.append((losses, jax.device_get(moved)))
    (one_losses, one), (eight_losses, eight) = results
    np.testing.assert_allclose(one_losses, eight_losses, rtol=1e-5)
    for path, leaf in one.items():
        assert np.abs(leaf - eight[path]).max() <= 2e-3 * np.abs(leaf).max() + 1e-7, path


def decoded_in_training(**fields):
    """How many images the decoder sees per labelled image, for each of its training passes."""
    built = build(**fields)
    seen = []
    original = segmenter_lib.applied_in_training

    def counting(model, variables, first, *rest, method, **named):
        if method == "decode_grid":
            seen.append(first.maps[-1].shape[0] // built.config.batch)
        return original(model, variables, first, *rest, method=method, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter_lib, "applied_in_training", counting)
        step = functools.partial(step_lib.train_step, built.modules)
        batch = build_step.abstract_batch(built.config)
        jax.eval_shape(step, built.frozen, built.abstract_state(), batch)
    return seen


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # x, s1, s2 and the perturbed w
        ({}, [4]),
        # batch statistics: x, w and both perturbed as published; then s1, s2 (docs/semivl.md 9.7)
        (DEEPLAB, [4, 2]),
        # statistics of the convolutional encoder only: two passes of it, one of the decoder
        ({"model__conv_encoder": "resnet101_v1c", "model__out_indices": (1, 2)}, [4]),
        ({"method": "unimatch_v2", **DEEPLAB}, [1, 2]),
        # the student teaches itself: its first pass gives the label of w
        ({"method": "fixmatch", "method__teacher": "student", **DEEPLAB}, [2, 2, 1]),
        ({"method__dropout_passes": "first"}, [2, 2]),
        ({"method": "supervised"}, [1]),
    ],
)
def test_the_student_decodes_what_the_method_needs(fields, expected):
    assert decoded_in_training(**fields) == expected
