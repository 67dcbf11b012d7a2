"""The training step of a configuration with random weights and images, for benchmarks of the step.

In: a configuration and fields to change. Out: `Workload`: the modules of the step, abstract arguments for
compiling and random arguments for running. Nothing has to be prepared or downloaded; shapes, dtypes and
operations are those of training.
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

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import build_step
from semivl_jax.models import vit
from semivl_jax.text import class_names, class_text
from semivl_jax.train import methods, sharding
from semivl_jax.train.state import Frozen, TrainState
from semivl_jax.train.step import StepModules
from semivl_jax.types import Batch, PyTree
from semivl_jax.weights import towers

TOTAL_STEPS = 1000
"""Only learning rates and weights of losses depend on it."""
RECIPES = {"voc": "configs/voc.py", "coco": "configs/coco.py", "ade20k": "configs/ade.py",
           "cityscapes": "configs/cityscapes.py"}  # fmt: skip
_ROOT = Path(__file__).parents[1]


def load_config(source: str, changes: Iterable[str] = ()) -> ConfigDict:
    """`source` is one of RECIPES or FILE[:ARGUMENT]; `changes` are KEY=VALUE with Python values.

    Raises:
      ValueError: the file or a key does not exist.
    """
    path, _, argument = source.partition(":")
    file = _ROOT / RECIPES[path] if path in RECIPES else Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(f"{path}: no such configuration file, nor one of {', '.join(RECIPES)}")
    spec = importlib.util.spec_from_file_location("benchmarked_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
    config.lock()  # an unknown key is then a KeyError
    for change in changes:
        key, _, text = change.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError:
            raise ValueError(f"--set={change}: the configuration has no key {key}") from None
    return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The modules of a step and its arguments. `frozen` is abstract, except for the text."""

    config: ConfigDict
    info: DatasetInfo
    modules: StepModules
    frozen: Frozen

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the training state."""
        return jax.eval_shape(self._create_state, self.frozen.guidance_params)

    def abstract_arguments(self, mesh: Mesh) -> tuple[Frozen, TrainState, Batch]:
        """Arguments of the step, sharded as in training."""
        batch = placed(build_step.abstract_batch(self.config), sharding.batch_sharding(mesh))
        frozen = sharding.abstract(mesh, self.frozen)
        return frozen, sharding.abstract(mesh, self.abstract_state()), batch

    def random_arguments(self) -> tuple[Frozen, TrainState, Batch]:
        """Arguments of the step with random values."""
        draw = jax.jit(functools.partial(_random, self.frozen.guidance_params))
        frozen = self.frozen.replace(guidance_params=draw(jax.random.key(0, impl="rbg")))
        state = jax.jit(self._create_state)(frozen.guidance_params)
        pixels = functools.partial(self._pixels, np.random.default_rng(0))
        batch = jax.tree.map(pixels, build_step.abstract_batch(self.config))
        return frozen, state, batch

    def _create_state(self, guidance_params: PyTree | None) -> TrainState:
        clip = guidance_params if self.config.model.init == "clip" else None
        start = None if clip is None else {"params": {"backbone": clip}}
        return build_step.create_state(self.modules, self.frozen.text, start)

    def _pixels(self, rng: np.random.Generator, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == jnp.int32:  # sizes: three quarters of the columns are image
            size = np.array([self.config.data.crop, self.config.data.crop * 3 // 4], np.int32)
            return jnp.asarray(np.broadcast_to(size, leaf.shape))
        top = 256 if leaf.ndim == 4 else self.info.num_classes
        return jnp.asarray(rng.integers(0, top, leaf.shape, np.uint8))


def build(config: ConfigDict) -> Workload:
    """The step of a configuration. Data sets other than the published ones get 8 classes."""
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

    text = functools.partial(class_text.embed_classes, info, embed=embed)
    frozen = Frozen(text=text(mode=config.text.decoder))
    if methods.create(config.method).guided:
        frozen = frozen.replace(
            guidance_params=build_step.cast(tower_params, config.model.guidance_dtype),
            guidance_text=text(mode=config.text.guidance),
        )
    modules, own = build_step.build_modules(
        config,
        num_classes=info.num_classes,
        clip_sizes=clip_sizes,
        text=frozen.text,
        total_steps=TOTAL_STEPS,
    )
    frozen = frozen.replace(method_variables=own)
    return Workload(config=config, info=info, modules=modules, frozen=frozen)


def placed(tree: PyTree, place: jax.sharding.Sharding) -> PyTree:
    """Shapes and dtypes with a sharding."""

    def put(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(put, tree)


def _random(like: PyTree, key: jax.Array) -> PyTree:
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    values = [
        0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(tree, values)
