"""The smallest experiment, on made-up classes and random crops; no data set is read."""

import functools
import tempfile

import jax
import numpy as np
import pytest

from configs import tiny
from semivl_jax.config import set_method
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import experiment
from semivl_jax.train import sharding
from semivl_jax.train.step import jit_train_step
from semivl_jax.types import Batch, ImageBatch, LabelledBatch
from semivl_jax.weights import towers

SIZE = 32
NAMES = ("ground", "disc", "box", "tree")
INFO = DatasetInfo(
    name="toy", classes=NAMES, definitions=(("ground", "floor"), ("disc",), ("box",), ("tree",))
)
# All experiments of a process have the same untrained CLIP and its embeddings of the classes.
TEXT = tempfile.TemporaryDirectory()
towers.initialised = functools.cache(towers.initialised)

DINO = {
    "model__backbone": "dinov3_vits16", "model__init": "random", "model__out_indices": (0, 1, 3),
    "model__finetune": "all",
}  # fmt: skip
TWO_STUDENTS = {**DINO, "model__similarity": "both", "model__clip_out_indices": (0, 1, 2)}


def config_of(*, method=None, **fields):
    """The configuration; `fields` change it, dots written as two underscores."""
    config = tiny.get_config()
    config.batch = 8
    config.compilation_cache, config.text.cache = "", TEXT.name
    if method is not None:
        set_method(config, method)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def build(devices=1, **fields):
    """An experiment with a configuration of `config_of`."""
    config = config_of(**fields)
    with pytest.MonkeyPatch.context() as patch:
        make = functools.partial(sharding.make_mesh, jax.devices()[:devices])
        patch.setattr(sharding, "make_mesh", make)
        return experiment.build(config, INFO, images_per_epoch=80)


def batch_of(built, seed=0, *, label=None):
    """Random crops with different margins and voids; `label` fills all labels."""
    rng, b = np.random.default_rng(seed), built.config.batch
    put = functools.partial(jax.device_put, device=sharding.batch_sharding(built.mesh))

    def image():
        return put(rng.integers(0, 256, (b, SIZE, SIZE, 3), np.uint8))

    def labels():
        made = rng.integers(0, len(NAMES), (b, SIZE, SIZE)).astype(np.uint8)
        made[rng.random(made.shape) < rng.random(b)[:, None, None]] = 255
        return put(made if label is None else np.full_like(made, label))

    def crops(stream):
        size = put(rng.integers(SIZE - 4, SIZE + 1, (b, 2)).astype(np.int32))
        return ImageBatch(image(), size, labels() if stream.labels else None)

    streams = built.modules.method.streams
    return Batch(
        labelled=LabelledBatch(image(), labels()),
        streams={key: crops(stream) for stream in streams for key in stream.keys},
    )


def step_of(built):
    """(state, batch) -> (state, metrics)."""
    step = jit_train_step(built.modules, built.mesh, built.abstract_state())
    return functools.partial(step, built.frozen)
