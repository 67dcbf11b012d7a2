"""Every configuration goes through the whole step with shapes only."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo, folder, tiny
from semivl_jax.config import default_config, set_method, validate
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import dry_run, experiment
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.train import sharding
from semivl_jax.weights import towers

CONFIGS = {
    "demo": demo.get_config,
    "tiny": tiny.get_config,
    "folder": lambda: folder.get_config("/photos"),
}
VOC_CLASSES = tuple(f"class {index}" for index in range(21))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)


@pytest.mark.parametrize("name", CONFIGS)
def test_check_reports_the_step(name):
    config = CONFIGS[name]()
    validate(config)
    info = DatasetInfo(name="toy", classes=("ground", "disc", "box"))
    report = dry_run.report(experiment.build(config, info, images_per_epoch=100))
    assert f"{config.steps:,} steps of {config.batch} + {config.batch} images" in report
    modules = re.findall(r"^\| \w+/\w+ +\| \d+ +\| ([\d,]+) +\|$", report, re.MULTILINE)
    total = int(re.search(r"of ([\d,]+) parameters$", report, re.MULTILINE)[1].replace(",", ""))
    assert sum(int(count.replace(",", "")) for count in modules) == total
    assert len(report.splitlines()) < 60  # one screen, or nearly
    sizes = dict(re.findall(r"^(\S.*?)\s{2,}(\d+\.\d+) GiB$", report, re.MULTILINE))
    assert float(sizes["for the backward, at most"]) > 0
    assert float(re.search(r"([\d.,]+) GFLOP", report)[1].replace(",", "")) > 0


def test_every_key_of_the_other_files_stands_in_base():
    known = set(default_config().to_dict())
    for make in CONFIGS.values():
        assert set(make().to_dict()) == known


def test_published_voc_model_has_the_published_number_of_parameters(monkeypatch):
    """89 045 729 parameters, 31 352 801 of them trained (counts of the published implementation)."""
    monkeypatch.setattr(towers, "load", _big_tower_without_weights)
    config = default_config()
    config.model.weights = "random"
    set_method(config, "unimatch")
    info = DatasetInfo(name="voc", classes=VOC_CLASSES)
    built = experiment.build(config, info, images_per_epoch=10_490)
    assert built.schedule.total_steps == 104_880
    state = built.abstract_state()
    trained = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    frozen = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.frozen_params))
    assert trained == 31_352_801
    assert trained + frozen == 89_045_729
    # Evaluation after every epoch (METHOD trap 22), the last one at the end.
    assert min(built.schedule.evaluation_steps) == 1311
    assert built.schedule.total_steps in built.schedule.evaluation_steps


def _big_tower_without_weights(weights, tower):
    """CLIP ViT-B/16 with zeros for parameters, and a small text tower of the same output size."""
    del weights
    image = towers.IMAGE_SIZES[tower]
    vision = VisionTransformer(**CLIP, **image, grid=(14, 14), out_indices=(image["depth"],))
    pixels = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(vision.init, jax.random.key(0), pixels)["params"]
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    small = towers.initialised("tiny")
    text = {**small.text, "out_dim": image["out_dim"]}
    wide = np.random.default_rng(0).normal(size=(text["width"], image["out_dim"]))
    text_params = {**small.text_params, "projection": {"kernel": wide.astype(np.float32)}}
    return dataclasses.replace(
        small, image=image, image_params=zeros, text=text, text_params=text_params
    )
