"""Every method trains on real batches and resumes bitwise; so does a new one.

`Toy` is a complete method: a stream of images with stored labels, parameters, state, and a loss of its own.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import tiny
from semivl_jax.config import drop_other_fields, set_method, validate
from semivl_jax.data import prefetch
from semivl_jax.experiment import data as data_lib
from semivl_jax.experiment import experiment
from semivl_jax.models import build
from semivl_jax.models.resnet import ResNet
from semivl_jax.train import methods, sharding
from semivl_jax.train.checkpoint import Checkpoints, LoopState
from semivl_jax.train.losses import supervised_weights
from semivl_jax.train.methods.base import Target
from semivl_jax.train.methods.supervised import Supervised
from semivl_jax.train.step import jit_train_step, train_step
from semivl_jax.types import Stream
from tests import served
from tests.command import ROOT
from tests.photos import make_folder
from tests.train import tiny_experiment
from tfds_builders.shapes import words

DEEPLAB = {"model.decoder": "deeplab", "model.out_indices": (1, 2)}
ENCODER = {"model.init": "random", "model.finetune": "all", "model.weights": ""}
METHODS = {
    "semivl": (
        "semivl",
        {"method.teacher": "student", "method.cutmix_partner": "same_image",
         "model.conv_encoder": "resnet101_v1c", "model.out_indices": (1, 2)},
    ),
    "co2s": (
        "co2s",
        {"model.backbone": "dinov3_vitb16", "model.init": "random", "model.finetune": "spatial",
         "model.out_indices": (0, 1, 3), "model.clip_out_indices": (0, 1, 2),
         "model.similarity": "both", "method.confidence_threshold": 0.3},
    ),
    "semivl_dinov2_clip": (
        "semivl",
        {"model.backbone": "dinov2_vits14", "model.init": "random", "model.finetune": "all",
         "model.out_indices": (1, 3), "model.similarity": "clip"},
    ),
    "fixmatch_dinov3_queries": (
        "fixmatch",
        {"model.backbone": "dinov3_vits16", "model.init": "random", "model.finetune": "spatial",
         "model.out_indices": (0, 1, 3), "model.similarity": "queries"},
    ),
    "cw_bass": ("cw_bass", {**DEEPLAB, "method.threshold": "class_adaptive", "method.calibrate": True}),
    "cw_bass_v1": (
        "cw_bass_v1",
        {**ENCODER, "model.backbone": "resnet101", "model.decoder": "deeplab", "optim.name": "sgd"},
    ),
    "cw_bass_semivl": ("cw_bass_semivl", {"method.threshold": "free_match"}),
    "mgd": (
        "mgd",
        {**ENCODER, "model.backbone": "resnet18", "model.decoder": "deeplab", "method.teacher": "later"},
    ),
    "semi_ovs": ("semi_ovs", DEEPLAB),
    "semi_ovs_semivl": (
        "semi_ovs_semivl", {"guidance.scores": "surgery", "guidance.refine": "par"},
    ),
    "ripu": ("ripu", DEEPLAB),
    "ripu_semivl": (
        "ripu_semivl", {"method.consistency_distance": "kl", "guidance.dense": "svc",
                        "guidance.refine": "affinity", "guidance.sentences": "definitions"},
    ),
    "supervised": ("supervised", DEEPLAB),
    "zegclip": (
        "zegclip",
        {"model.backbone": "prompted_clip_vit", "model.out_indices": (2,), "model.finetune": "prompts",
         "model.decoder": "atm"},
    ),
    "unimatch_vit": (
        "unimatch",
        {**ENCODER, "model.backbone": "imagenet_vit", "model.out_indices": (1, 3),
         "model.decoder": "deeplab", "method.dropout_passes": "all"},
    ),
    "unimatch_v2": (
        "unimatch_v2",
        {**ENCODER, "model.backbone": "dinov3_vits16plus", "model.out_indices": (0, 1, 2, 3),
         "model.decoder": "dpt", "method.criterion": "ohem"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A few pictures, made once for all methods, and a folder `ood` with labels of their classes."""
    folder = tmp_path_factory.mktemp("shapes")
    ood = make_folder(folder / "ood", train=6)
    (ood / "classes.txt").write_text("\n".join(words.CLASSES))
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(data_lib.ShapesBuilder, train=24, validation=2)
        patch.setattr(data_lib, "ShapesBuilder", small)
        yield folder


@pytest.fixture(autouse=True)
def small(one_device, monkeypatch):
    monkeypatch.setitem(build.BACKBONES, "resnet101", (ResNet, {"blocks": (1, 1, 1, 1)}))
    light = {"blocks": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_channels": 8, "basic": True}
    monkeypatch.setitem(build.BACKBONES, "resnet18", (ResNet, light))


@pytest.mark.parametrize("case", METHODS)
def test_steps_are_finite_and_resume_exactly(case, shapes, tmp_path):
    method, fields = METHODS[case]
    config = tiny.get_config()
    config.steps, config.data.directory, config.data.split = 4, str(shapes), "1_2"
    config.data.extra_sources = f"ood={shapes / 'ood'}"
    set_method(config, method)
    config.update_from_flattened_dict(fields)
    validate(config)
    data = data_lib.open_data(config)
    if method == "mgd":
        config.method.teacher = str(served.make(tmp_path / "run", info=data.info))
    built = experiment.build(config, data.info, images_per_epoch=100)
    step = jax.jit(functools.partial(train_step, built.modules))
    place = sharding.batch_sharding(built.mesh)

    def train(state, start):
        pipeline = built.pipeline(data)
        with prefetch.prefetch_to_device(pipeline, start, sharding=place, ahead=1) as batches:
            for _ in range(2):
                state, metrics = step(built.frozen, state, next(batches))
                assert np.isfinite(metrics["loss"])
        return state

    first = train(built.init_state(), 0)
    whole = train(first, 2)
    again = train(restored(first, built, tmp_path), 2)
    assert int(whole.step) == 4 and int(whole.skipped) == 0
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def restored(state, built, folder):
    """The state, saved and restored."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(state, LoopState(next_step=int(state.step)))
    checkpoints.wait()
    found, _ = checkpoints.restore(built.abstract_state())
    checkpoints.close()
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Supervised):
    """A stream of labelled extra images, as much weight as they were right so far, a learned penalty."""

    share: float = 0.5

    @property
    def streams(self):
        return (Stream("extra", source="extra", labels=True),)

    def init(self, key, setup):
        return {"scale": jnp.ones(setup.num_classes)}, {"right": jnp.full((), 0.5)}

    def labels(self, networks, views, noise):
        return networks.predict(networks.student, views.streams["extra"].w)

    def update(self, state, labels, views):
        right = jnp.mean(labels.label == views.streams["extra"].label, dtype=jnp.float32)
        return {"right": 0.9 * state["right"] + 0.1 * right}

    def targets(self, labels, views, state, progress):
        made = super().targets(labels, views, state, progress)
        label = views.streams["extra"].label
        weight = supervised_weights(label) * state["right"]
        return made.replace(
            views=made.views | {"e": (Target("loss_e", label, weight),)},
            factors=made.factors | {"loss_e": self.share},
            metrics={"right": state["right"]},
        )

    def passes(self, views):
        return [{"x": views.x, "e": views.streams["extra"].w}]

    def losses(self, params, outputs, labels, views):
        energy = jnp.einsum("bhwn,n->b", outputs.logits["e"] ** 2, params["scale"])
        penalty = jnp.sum(energy) * 1e-6
        return penalty, {"penalty": penalty}


def test_a_new_method_trains_accumulates_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setitem(methods.METHODS, "toy", Toy)
    states, metrics = [], []
    for parts in (1, 2):
        built = tiny_experiment.build(method="toy", accumulation=parts, optim__name="sgd")
        step = jit_train_step(built.modules, built.mesh, built.abstract_state())
        state = built.init_state()
        first = jax.device_get(state)
        for seed in range(2):
            state, values = step(built.frozen, state, tiny_experiment.batch_of(built, seed))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(values))
    assert {"loss_x", "loss_e", "penalty", "right"} <= metrics[0].keys()
    assert 0 < states[0].method["right"] != first.method["right"]
    assert (states[0].params["method"]["scale"] < first.params["method"]["scale"]).all()
    for name, value in metrics[0].items():
        np.testing.assert_allclose(metrics[1][name], value, rtol=1e-4, err_msg=name)
    after = [step(built.frozen, each, tiny_experiment.batch_of(built, 9))[0]
             for each in (restored(state, built, tmp_path), state)]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *after)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled(Supervised):
    """The student's deepest features must have the channel means of a frozen network's."""

    def networks(self, setup):
        teacher = nn.Conv(setup.model.backbone.out_dim, (4, 4))
        return teacher, teacher.init(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))

    def labels(self, networks, views, noise):
        return networks.method_modules.apply(networks.frozen.method_variables, views.x).mean((1, 2))

    def losses(self, params, outputs, labels, views):
        distance = outputs.features["x"].maps[-1].mean((1, 2)) - labels
        return 10 * jnp.sum(distance**2), {"distance": jnp.sum(distance**2)}


def test_a_method_with_a_frozen_network_trains_on_features(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "distilled", Distilled)
    built = tiny_experiment.build(
        method="distilled", accumulation=2, model__finetune="all", optim__backbone_lr=10.0
    )
    step, state, values = tiny_experiment.step_of(built), built.init_state(), []
    batch = tiny_experiment.batch_of(built)
    for _ in range(4):
        state, metrics = step(state, batch)
        values.append(float(metrics["distance"]))
    assert values == sorted(values, reverse=True) and values[-1] < 0.9 * values[0]


def test_a_folder_is_a_further_source_of_images(monkeypatch, tmp_path):
    monkeypatch.setitem(methods.METHODS, "toy", Toy)
    config = tiny.get_config(str(make_folder(tmp_path / "photos")))
    config.data.directory = str(tmp_path / "prepared")
    set_method(config, "toy")
    with pytest.raises(ValueError, match=r"data\.extra_sources = 'extra=/path/to/folder'"):
        data_lib.open_data(config)
    config.data.extra_sources = "extra"
    with pytest.raises(ValueError, match=r"data\.extra_sources = 'extra': write NAME=FOLDER"):
        data_lib.open_data(config)
    config.data.extra_sources = f"extra={make_folder(tmp_path / 'more', train=6)}"
    data = data_lib.open_data(config)
    built = experiment.build(config, data.info, images_per_epoch=4)
    with built.pipeline(data).batches(0) as batches:
        batch = next(batches)
    assert batch["extra/image"].shape == (2, 32, 32, 3)
    assert set(np.unique(batch["extra/label"])) <= {0, 1, 2, 255}
    assert (batch["extra/label"] != 255).any()


def test_the_example_of_the_documentation_trains(monkeypatch):
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf8")
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class " in block
    )
    scope = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp, "UniMatch": methods.UniMatch}
    exec(code, scope)
    monkeypatch.setitem(methods.METHODS, "class_thresholds", scope["ClassThresholds"])
    low = {"method__confidence_threshold": 0.25}  # what every prediction of four classes reaches
    built = tiny_experiment.build(method="class_thresholds", method__momentum=0.5, **low)
    state, metrics = tiny_experiment.step_of(built)(
        built.init_state(), tiny_experiment.batch_of(built)
    )
    assert metrics["confident"] > 0
    assert (state.method["confidence"] != 0.5).any()


def test_fields_of_a_method_are_its_own():
    config = tiny.get_config()
    config.method.ema_decay = 0.9
    set_method(config, "fixmatch", confidence_threshold=0.8)
    assert config.method.to_dict() == methods.defaults("fixmatch") | {
        "ema_decay": 0.9, "confidence_threshold": 0.8,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"method 'fixmatch' has no field 'perturbation_rate'"):
        set_method(config, "fixmatch", perturbation_rate=0.3)
    set_method(config, "semivl")
    config.method.name = "fixmatch"
    with pytest.raises(ValueError, match=r"method\.\w+ is no field of the method 'fixmatch'"):
        validate(config)
    drop_other_fields(config)  # as after --config.method.name=fixmatch
    validate(config)
    assert set(config.method) == set(methods.defaults("fixmatch"))
    set_method(config, "semivl", guidance_threshold=0.8)
    config.method.name = "fixmatch"
    with pytest.raises(ValueError, match=r"method\.guidance_threshold = 0\.8 is no field of"):
        drop_other_fields(config, chosen=["method.guidance_threshold"])
    drop_other_fields(config)  # a value of the configuration file goes with its method
    assert set(config.method) == set(methods.defaults("fixmatch"))
    config.method.name = "fixmach"
    with pytest.raises(
        ValueError, match=r"method\.name = 'fixmach' is unknown; choose one of superv"
    ):
        validate(config)
