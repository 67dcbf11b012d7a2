"""Behaviour of the training step beyond the published numbers, on the smallest model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import experiment, step_modules
from semivl_jax.models import segmenter as segmenter_lib
from semivl_jax.train import loop, programs, sharding
from semivl_jax.train import step as step_lib
from semivl_jax.types import Batch, ImageBatch, LabelledBatch
from semivl_jax.weights.tree import flatten

INFO = DatasetInfo(
    name="toy", classes=("ground", "disc", "box"),
    definitions=(("ground", "floor"), ("disc",), ("box", "crate")),
)  # fmt: skip
SIZE = 32


def build(devices=1, **fields):
    """A tiny experiment; `fields` change its configuration, dots written as two underscores."""
    config = tiny.get_config()
    config.batch = 8
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    with pytest.MonkeyPatch.context() as patch:
        mesh = sharding.make_mesh(jax.devices()[:devices])
        patch.setattr(sharding, "make_mesh", lambda **_: mesh)
        return experiment.build(config, INFO, images_per_epoch=80)


def batch_of(built, *, label=None, seed=0):
    rng = np.random.default_rng(seed)
    b, method = built.config.batch, built.config.method
    place = functools.partial(jax.device_put, device=sharding.batch_sharding(built.mesh))

    def image():
        return place(rng.integers(0, 256, (b, SIZE, SIZE, 3), np.uint8))

    def unlabelled():
        size = np.tile(np.array([[SIZE, SIZE - 4]], np.int32), (b, 1))
        return ImageBatch(image=image(), size=place(size))

    labels = rng.integers(0, 3, (b, SIZE, SIZE), np.uint8)
    if label is not None:
        labels[:] = label
    own_partner = method.semi_supervised and method.partner == "same_image"
    names = ("unlabelled", "unlabelled.1")[: method.semi_supervised * (1 + own_partner)]
    return Batch(
        labelled=LabelledBatch(image=image(), label=place(labels)),
        streams={name: unlabelled() for name in names},
    )


def stepper(built):
    step = programs.Step(built.parts, built.mesh, built.abstract_state())
    return functools.partial(step, built.constants)


@pytest.fixture(scope="module")
def default():
    """The experiment and the step of the configuration as it is, compiled once."""
    built = build()
    return built, stepper(built)


def assert_finite(tree):
    for path, leaf in flatten(tree).items():
        assert np.isfinite(np.asarray(leaf)).all(), path


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"method__teacher": "student", "method__partner": "same_image"},
        {"method__guidance": False, "method__criterion": "ohem", "method__ohem_min_kept": 50,
         "method__confidence_mode": "pixelratio"},
        {"model__decoder": "deeplab", "model__taps": (1, 2), "method__confidence_mode": "pixelavg"},
        {"method__semi_supervised": False, "optim__name": "sgd"},
    ],
    ids=["default", "published", "ohem", "deeplab", "supervised"],
)  # fmt: skip
def test_steps_are_finite_even_without_a_labelled_or_confident_pixel(fields, default):
    built, step = default
    if fields:
        built = build(**fields)
        step = stepper(built)
    state = built.init_state()
    before = jax.device_get(state.trained)
    for t, label in enumerate((None, 255)):
        state, metrics = step(state, batch_of(built, label=label, seed=t))
        values = jax.device_get(metrics)
        assert all(np.isfinite(value) for value in values.values()), values
    assert values["loss_x"] == 0.0
    assert values["skipped"] == 0
    if built.config.method.semi_supervised and built.config.method.confidence_mode == "pixelwise":
        assert values["confident"] == 0.0 and values["loss_s1"] == 0.0
    assert_finite(state.trained)
    assert int(state.step) == 2
    moved = [
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, state.trained)), strict=True)
    ]
    assert np.mean(moved) > 0.8  # all but leaves whose gradient is zero


def test_average_follows_the_student(default):
    built, step = default
    state = built.init_state()
    state, _ = step(state, batch_of(built, seed=0))
    # The first decay is 0: the average is the student after one step.
    for path, leaf in flatten(state.ema).items():
        np.testing.assert_array_equal(leaf, flatten(state.trained)[path], err_msg=path)
    first = jax.device_get(state.trained)
    state, _ = step(state, batch_of(built, seed=1))
    for path, leaf in flatten(state.ema).items():
        expected = 0.5 * flatten(first)[path] + 0.5 * np.asarray(flatten(state.trained)[path])
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-9, err_msg=path)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(default):
    built, step = default
    state = built.init_state()
    batch = batch_of(built)
    name = next(iter(state.trained["decoder"]["conv1"]))
    poisoned = jax.tree.map(jnp.copy, state)
    poisoned.trained["decoder"]["conv1"][name] *= jnp.nan
    before = jax.device_get(poisoned)
    for count in (1, 2):
        poisoned, metrics = step(poisoned, batch)
        assert int(metrics["skipped"]) == count
    after = jax.device_get(poisoned)
    assert after.step == 2
    for part in ("trained", "opt_state", "ema"):
        old, new = (jax.tree.leaves(getattr(tree, part)) for tree in (before, after))
        for one, other in zip(old, new, strict=True):
            np.testing.assert_array_equal(one, other)
    state, metrics = step(state, batch)
    assert int(metrics["skipped"]) == 0


def test_reversed_batch_partner_is_the_partner_given_explicitly():
    """`partner="batch"` is the own-partner step whose partner views are the reversed ones."""
    built = build(method__teacher="student")
    state = built.init_state()
    views, noise = jax.jit(functools.partial(step_lib.draw, built.parts))(state, batch_of(built))
    given = views.replace(partner=jax.tree.map(lambda leaf: leaf[::-1], views.unlabelled))
    differentiate = jax.jit(functools.partial(step_lib.differentiate, built.parts))
    implicit = differentiate(built.constants, state, views, noise)
    explicit = differentiate(built.constants, state, given, noise)
    np.testing.assert_allclose(implicit.loss, explicit.loss, rtol=1e-5)
    for path, leaf in flatten(implicit.gradients).items():
        other = np.asarray(flatten(explicit.gradients)[path])
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-6, err_msg=path)


def test_one_device_and_eight_devices_agree_with_batch_statistics():
    """Which are those of the whole batch; other models: test_meshes."""
    fields, results = {"model__decoder": "deeplab", "model__taps": (1, 2)}, []
    for devices in (1, 8):
        # Of SGD, whose steps are as exact as the gradients: Adam's amplify the rounding of small ones.
        built = build(devices, optim__name="sgd", **fields)
        step, state = stepper(built), built.init_state()
        start, losses = jax.device_get(flatten(state.trained)), []
        for t in range(3):
            state, metrics = step(state, batch_of(built, seed=t))
            losses.append(float(metrics["loss"]))
        moved = {path: leaf - start[path] for path, leaf in flatten(state.trained).items()}
        results.append((losses, jax.device_get(moved)))
    (one_losses, one), (eight_losses, eight) = results
    np.testing.assert_allclose(one_losses, eight_losses, rtol=1e-5)
    for path, leaf in one.items():
        assert np.abs(leaf - eight[path]).max() <= 2e-3 * np.abs(leaf).max() + 1e-7, path


def decoded_in_training(**fields):
    """How many images the decoder sees per labelled image, for each of its training passes."""
    built = build(**fields)
    seen = []

    def counting(original, train):
        def apply(segmenter, variables, first, *rest, method, **named):
            if method == "decode_grid":
                seen.append((first.maps[-1].shape[0], train))
            return original(segmenter, variables, first, *rest, method=method, **named)

        return apply

    with pytest.MonkeyPatch.context() as patch:
        for name, train in (("applied", False), ("applied_in_training", True)):
            original = getattr(segmenter_lib, name)
            patch.setattr(segmenter_lib, name, counting(original, train))
        step = functools.partial(step_lib.train_step, built.parts)
        batch = step_modules.abstract_batch(built.config)
        jax.eval_shape(step, built.constants, built.abstract_state(), batch)
    teachers = [count for count, train in seen if not train]
    assert max(teachers, default=0) <= built.config.batch
    return [count // built.config.batch for count, train in seen if train]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # x, w, s1, s2 and the perturbed w
        ({}, [5]),
        # batch statistics: x, w and both perturbed as published; then s1, s2 (METHOD trap 7)
        ({"model__decoder": "deeplab", "model__taps": (1, 2)}, [4, 2]),
        # statistics of the convolutional encoder only: two passes of it, one of the decoder, and nobody
        # misses the perturbed x
        ({"model__conv_encoder": "resnet101_v1c", "model__taps": (1, 2)}, [5]),
        # FixMatch taught by the average (x, s1) and by the student (x, w, s1)
        ({"method__perturbation": "none", "method__strong_views": 1}, [2]),
        ({"method__perturbation": "none", "method__strong_views": 1, "method__teacher": "student"},
         [3]),
        # UniMatch V2: x, s1, s2
        ({"method__perturbation": "complementary", "method__guidance": False,
          "model__decoder": "deeplab", "model__taps": (1, 2)}, [1, 2]),
        ({"method__dropout_passes": "first"}, [3, 2]),
        ({"method__dropout_passes": "all"}, [5]),
        ({"method__semi_supervised": False}, [1]),
    ],
)  # fmt: skip
def test_the_student_decodes_what_the_recipe_needs(fields, expected):
    assert decoded_in_training(**fields) == expected


def test_too_many_skipped_steps_stop_the_run(tmp_path):
    clock = loop.Clock(
        total_steps=10, evaluation_steps=frozenset(), checkpoint_every=5, log_every=1,
        max_skipped=2, batch=1,
    )  # fmt: skip
    from semivl_jax.train.checkpoint import Progress
    from semivl_jax.train.metrics import MetricWriter

    progress = Progress(next_step=7)
    with MetricWriter(tmp_path, next_step=0) as writer:
        log = loop._Log(clock, writer, progress)
        log.step(progress, {"loss": jnp.float32(np.nan), "skipped": jnp.float32(3)})
        with pytest.raises(
            loop.NonFiniteLossError, match=r"3 steps in a row, the first of them step 5"
        ):
            log.flush()
    assert '"train/loss": null' in (tmp_path / "metrics.jsonl").read_text()
