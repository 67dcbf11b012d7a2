"""A configuration's training step with made-up data: what the benchmarks of the step compile and run.

In: a configuration file or the name of a published recipe, and fields to change. Out: `Workload`, the
parts of the step, abstract arguments for compiling and random ones for running. The towers are random and
the words mean nothing, so nothing has to be prepared or downloaded; shapes, dtypes and work are those of
training. Import `benchmarks.stand_ins` and call `install()` first where packages may be missing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import base
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import step_modules
from semivl_jax.models import vit
from semivl_jax.text import class_names, embeddings
from semivl_jax.train import sharding
from semivl_jax.train.recipe import Parts
from semivl_jax.train.state import Constants, TrainState
from semivl_jax.types import Batch, PyTree
from semivl_jax.weights import towers

TOTAL_STEPS = 1000  # only rates depend on it, never work

# What METHOD section 8 says of the published recipes beyond configs/base.py, where it decides about work.
PUBLISHED: dict[str, dict[str, Any]] = {
    "voc": {},
    "coco": {"text.guidance": "name"},
    "ade20k": {"text.guidance": "name"},
    "cityscapes": {
        "text.decoder": "concept_average",
        "data.crop": 801,
        "model.out_indices": (4, 12),
        "model.conv_encoder": "resnet101_v1c",
        "model.renormalize": True,
        "vlg_decoder.skip_channels": (32, 32),
        "method.confidence_mode": "pixelavg",
    },
}


def published(name: str) -> ConfigDict:
    """Configuration of a published recipe; ValueError for an unknown name."""
    if name not in PUBLISHED:
        raise ValueError(f"recipe {name!r} is unknown; choose one of {', '.join(PUBLISHED)}")
    config = base.get_config()
    config.data.dataset = name
    config.update_from_flattened_dict(PUBLISHED[name])
    return config


def load_config(source: str, changes: Iterable[str] = ()) -> ConfigDict:
    """`source` is a published recipe or FILE[:ARGUMENT]; `changes` are KEY=VALUE with Python values.

    Raises ValueError for a file or key that is not there.
    """
    path, _, argument = source.partition(":")
    if path.endswith(".py"):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such configuration file")
        spec = importlib.util.spec_from_file_location("benchmarked_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    else:
        config = published(source)
    for change in changes:
        key, _, value = change.partition("=")
        if not _has(config, key):
            raise ValueError(f"--set={change}: the configuration has no key {key}")
        config.update_from_flattened_dict({key: _value(value)})
    return config


def _has(config: ConfigDict, key: str) -> bool:
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, ConfigDict) or name not in node:
            return False
        node = node[name]
    return True


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A step's parts, and arguments of the right shapes."""

    config: ConfigDict
    info: DatasetInfo
    parts: Parts
    constants: Constants  # abstract, but for the text

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the training state."""
        return jax.eval_shape(self._create_state, self.constants.guidance_params)

    def abstract_batch(self) -> Batch:
        """Shapes and dtypes of the global batch."""
        return step_modules.abstract_batch(self.config)

    def abstract_arguments(self, mesh: Mesh) -> tuple[Constants, TrainState, Batch]:
        """Arguments of the step for compiling, where training keeps them on a mesh."""
        place = sharding.batch_sharding(mesh)
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.abstract_batch(),
        )
        constants, state = (
            sharding.abstract(mesh, tree) for tree in (self.constants, self.abstract_state())
        )
        return constants, state, batch

    def random_arguments(self, seed: int = 0) -> tuple[Constants, TrainState, Batch]:
        """Arguments of the step with random values."""
        key = jax.random.key(seed, impl="rbg")
        draw = functools.partial(_random, self.constants.guidance_params)
        constants = self.constants.replace(guidance_params=jax.jit(draw)(key))
        state = jax.jit(self._create_state)(constants.guidance_params)
        rng = np.random.default_rng(seed)
        batch = jax.tree.map(functools.partial(self._pixels, rng), self.abstract_batch())
        return constants, state, batch

    def _create_state(self, guidance_params: PyTree | None) -> TrainState:
        clip = guidance_params if self.config.model.init == "clip" else None
        start = None if clip is None else {"params": {"backbone": clip}}
        return step_modules.create_state(self.parts, self.constants.text, start)

    def _pixels(self, rng: np.random.Generator, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == jnp.int32:  # sizes: three quarters of the columns are image
            size = np.array([self.config.data.crop, self.config.data.crop * 3 // 4], np.int32)
            return jnp.asarray(np.broadcast_to(size, leaf.shape))
        top = 256 if leaf.ndim == 4 else self.info.num_classes
        return jnp.asarray(rng.integers(0, top, leaf.shape, np.uint8))


def build(config: ConfigDict) -> Workload:
    """The step of a configuration; a data set that is not public counts as one of 8 classes."""
    if config.data.dataset in class_names.DATASETS:
        info = class_names.dataset_info(config.data.dataset)
    else:
        classes = tuple(f"class {index}" for index in range(8))
        info = DatasetInfo(name=config.data.dataset, classes=classes)
    clip_sizes = towers.IMAGE_SIZES[config.model.tower]
    side = config.data.crop // clip_sizes["patch_size"]
    tower = vit.VisionTransformer(
        **vit.CLIP, **clip_sizes, grid=(side, side), out_indices=(clip_sizes["depth"],)
    )
    pixels = jax.ShapeDtypeStruct((1, config.data.crop, config.data.crop, 3), jnp.float32)
    tower_params = jax.eval_shape(tower.init, jax.random.key(0), pixels)["params"]

    def embed(sentences: list[str]) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.normal(size=(len(sentences), clip_sizes["out_dim"])).astype(np.float32)

    text = functools.partial(embeddings.class_text, info, embed=embed)
    guided = step_modules.guided(config)
    constants = Constants(
        text=text(mode=config.text.decoder),
        guidance_params=step_modules.cast(tower_params, config.model.guidance_dtype)
        if guided
        else None,
        guidance_text=text(mode=config.text.guidance) if guided else None,
    )
    parts = step_modules.build_parts(
        config,
        num_classes=info.num_classes,
        clip_sizes=clip_sizes,
        text=constants.text,
        total_steps=TOTAL_STEPS,
    )
    return Workload(config=config, info=info, parts=parts, constants=constants)


def _random(like: PyTree, key: jax.Array) -> PyTree:
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    values = [
        0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(tree, values)
