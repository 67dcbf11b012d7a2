"""Each method trains 20 steps on `shapes`, stays finite, and goes on bitwise after a checkpoint."""

import functools

import jax
import numpy as np
import pytest

from configs import tiny
from semivl_jax.config import validate
from semivl_jax.data import prefetch
from semivl_jax.experiment import experiment
from semivl_jax.models import build
from semivl_jax.models.resnet import ResNet
from semivl_jax.train import sharding
from semivl_jax.train.checkpoint import Checkpoints, Progress
from semivl_jax.train.step import train_step

STEPS = 20
DEEPLAB = {"model.decoder": "deeplab", "model.out_indices": (1, 2), "method.guidance": False}
ENCODER = {
    "model.init": "random",
    "model.finetune": "all",
    "model.weights": "",
    "method.guidance": False,
}
METHODS = {
    "semivl": {"method.teacher": "student", "method.partner": "same_image"},
    "semivl_conv_encoder": {"model.conv_encoder": "resnet101_v1c", "model.out_indices": (1, 2)},
    "unimatch": DEEPLAB,
    "fixmatch": {**DEEPLAB, "method.strong_views": 1, "method.perturbation": "none"},
    "unimatch_v2": {**DEEPLAB, "method.perturbation": "complementary"},
    "supervised": {**DEEPLAB, "method.semi_supervised": False},
    "zegclip": {
        "model.backbone": "prompted_clip_vit",
        "model.out_indices": (2,),
        "model.finetune": "prompts",
        "model.decoder": "atm",
        "method.criterion": "focal_dice",
        "method.dropout_passes": "first",
        "method.guidance": False,
    },
    "unimatch_r101": {
        **ENCODER,
        "model.backbone": "resnet101",
        "model.decoder": "deeplab",
        "optim.name": "sgd",
    },
    "unimatch_vit": {
        **ENCODER,
        "model.backbone": "imagenet_vit",
        "model.out_indices": (1, 3),
        "model.decoder": "deeplab",
        "method.dropout_passes": "all",
    },
    "unimatch_v2_dinov2": {
        **ENCODER,
        "model.backbone": "dinov2_vits14",
        "model.out_indices": (0, 1, 2, 3),
        "model.decoder": "dpt",
        "method.perturbation": "complementary",
        "method.criterion": "ohem",
    },
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A few scenes, drawn once for all methods."""
    folder = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(experiment.ShapesBuilder, train=24, validation=2)
        patch.setattr(experiment, "ShapesBuilder", small)
        yield folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)
    monkeypatch.setitem(build.BACKBONES, "resnet101", (ResNet, {"blocks": (1, 1, 1, 1)}))


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_are_finite_and_resume_exactly(method, shapes, tmp_path):
    config = tiny.get_config()
    config.steps, config.data.directory, config.data.split = STEPS, str(shapes), "1_2"
    config.update_from_flattened_dict(METHODS[method])
    validate(config)
    data = experiment.open_data(config)
    built = experiment.build(config, data.info, images_per_epoch=100)
    step = jax.jit(functools.partial(train_step, built.parts))
    place = sharding.batch_sharding(built.mesh)

    def train(state, start, stop):
        with prefetch.feed(built.pipeline(data), start, sharding=place, ahead=1) as batches:
            for _ in range(start, stop):
                state, metrics = step(built.constants, state, next(batches))
                assert np.isfinite(metrics["loss"])
        return state

    half = train(built.init_state(), 0, STEPS // 2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(half, Progress(next_step=STEPS // 2))
    checkpoints.wait()
    whole = train(half, STEPS // 2, STEPS)
    restored, progress = checkpoints.restore(built.abstract_state())
    checkpoints.close()
    again = train(restored, progress.next_step, STEPS)
    assert int(whole.step) == STEPS and int(whole.skipped) == 0
    for one, other in zip(*map(jax.tree.leaves, (whole, again)), strict=True):
        np.testing.assert_array_equal(one, other)
