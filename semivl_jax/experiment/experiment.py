"""From a configuration and its data to an experiment: model, method, text, optimiser, schedule and mesh.

`data` opens the images; `run` trains and evaluates.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from semivl_jax.data.crops import Geometry
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.data.pipeline import TrainPipeline
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.experiment import build_step, init_weights, trained_run
from semivl_jax.experiment.data import Data
from semivl_jax.models import build as build_lib
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.text import class_text, enrichment
from semivl_jax.train import methods, sharding
from semivl_jax.train import state as state_lib
from semivl_jax.train.loop import LoopSchedule
from semivl_jax.train.step import StepModules
from semivl_jax.types import Batch, ClassText, PyTree
from semivl_jax.weights import towers as towers_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run needs, built from one configuration; `clip_sizes` are the image tower's."""

    config: ConfigDict
    info: DatasetInfo
    mesh: Mesh
    modules: StepModules
    frozen: state_lib.Frozen
    schedule: LoopSchedule
    clip_start: PyTree | None
    clip_sizes: dict[str, Any]
    text_tower: class_text.TextTower | None

    @property
    def crop(self) -> int:
        """Side of the training crop in pixels."""
        return self.config.data.crop

    def init_state(self) -> state_lib.TrainState:
        """State before the first step, on the mesh."""
        create = functools.partial(build_step.create_state, self.modules, self.frozen.text)
        # Initialised whole: the random generator gives other numbers to an array that is split.
        state = jax.jit(create, out_shardings=sharding.replicated(self.mesh))(self.start)
        return jax.device_put(state, sharding.shardings(self.mesh, state))

    @functools.cached_property
    def start(self) -> PyTree | None:
        """Variables from files; what they lack is initialised.

        Raises:
          ValueError: a file is missing, damaged or of another model.
        """
        return init_weights.variables(
            self.config, self.modules.model, self.frozen.text, clip=self.clip_start
        )

    def abstract_state(self) -> state_lib.TrainState:
        """Shapes, dtypes and shardings of the state, without computing it."""
        create = functools.partial(build_step.create_state, self.modules, self.frozen.text)
        return sharding.abstract(self.mesh, jax.eval_shape(create, None))

    @functools.cached_property
    def local_frozen(self) -> state_lib.Frozen:
        """`frozen` on devices of this process; all processes must read it together."""
        return sharding.local(self.mesh, self.frozen)

    def abstract_batch(self) -> Batch:
        """Shapes, dtypes and shardings of a global batch."""
        place = sharding.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            build_step.abstract_batch(self.config),
        )

    def pipeline(self, data: Data) -> TrainPipeline:
        """The stream of training batches."""
        settings = self.config.data
        geometry = Geometry(
            crop=settings.crop,
            resize=settings.resize,
            ratio_long=settings.ratio_long,
            ratio_short=settings.ratio_short,
            scale_min=settings.scale_min,
            scale_max=settings.scale_max,
        )
        return TrainPipeline(
            data.train,
            data.split.labelled,
            data.split.unlabelled,
            streams=self.modules.method.streams,
            extra_sources=data.extra,
            calibration=data.split.calibration,
            rare_class_share=settings.rare_class_share,
            batch=self.config.batch,
            geometry=geometry,
            seed=self.config.seed,
            workers=settings.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def evaluator(self) -> Evaluator:
        """Sliding-window evaluation of given variables."""
        model = self.modules.model
        return Evaluator(
            build_lib.window_network(model, self.local_frozen.text),
            SlidingWindow.from_config(self.config, model),
            num_classes=self.info.num_classes,
        )


def build(
    config: ConfigDict, info: DatasetInfo, *, images_per_epoch: int, abstract: bool = False
) -> Experiment:
    """The experiment for a data set with these classes and so many images per epoch.

    With `abstract`, CLIP weights from files are shapes only: enough to trace a step.
    """
    mesh = mesh_of(config)
    total_steps, epoch = training_length(config, images_per_epoch)
    guided = methods.create(config.method).guided
    clip = _ClipParts(frozen=state_lib.Frozen(text=None))
    if guided or build_lib.needs_clip(config.model):
        clip = _clip_parts(config, info, guided=guided, abstract=abstract)
        _check_classes(config, clip.frozen.text)
    modules, method_variables = build_step.build_modules(
        config,
        num_classes=info.num_classes,
        clip_sizes=clip.sizes,
        text=clip.frozen.text,
        total_steps=total_steps,
        load=functools.partial(trained_run.load, info=info),
    )
    frozen = clip.frozen.replace(method_variables=method_variables)
    if not clip.abstract:
        frozen = sharding.put(mesh, frozen)
    return Experiment(
        config=config,
        info=info,
        mesh=mesh,
        modules=modules,
        frozen=frozen,
        schedule=_loop_schedule(config, modules, total_steps, epoch),
        clip_start=clip.start,
        clip_sizes=clip.sizes,
        text_tower=clip.text_tower,
    )


def mesh_of(config: ConfigDict) -> Mesh:
    """The devices of all processes as `config.mesh` arranges them.

    Raises:
      ValueError: they cannot be arranged so, or cannot share the batch.
    """
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch, mesh, accumulation=config.accumulation)
    return mesh


def _check_classes(config: ConfigDict, text: ClassText) -> None:
    """ValueError if the devices along `classes` cannot get the same number of text rows each."""
    rows, devices = text.embeddings.shape[0], config.mesh.classes
    if rows % devices:
        fitting = [size for size in range(2, rows) if rows % size == 0][:4]
        remedy = f"choose {' or '.join(map(str, fitting))}" if fitting else "set it to 1"
        raise ValueError(
            f"mesh.classes = {devices} does not divide the {rows} texts that describe the classes "
            f"(text.decoder = {config.text.decoder!r}); {remedy}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClipParts:
    """What a run takes from CLIP; `start` has the first parameters of the trained tower."""

    frozen: state_lib.Frozen
    abstract: bool = False
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: PyTree | None = None
    text_tower: class_text.TextTower | None = None


def _clip_parts(
    config: ConfigDict, info: DatasetInfo, *, guided: bool, abstract: bool
) -> _ClipParts:
    absent = abstract and config.model.weights not in ("demo", "random")
    if absent:
        clip = towers_lib.abstract_clip(config.model.tower)
    else:
        clip = towers_lib.load(config.model.weights, config.model.tower)
    tower = None if absent else class_text.TextTower.of(clip)

    def params(vision: VisionTransformer) -> PyTree:
        if absent:
            return towers_lib.image_shapes(clip.image, vision.grid)
        return towers_lib.resized(clip, vision.grid, resizing=vision.table_resizing)

    def text(mode: str) -> ClassText:
        if tower is None:  # placeholders with the right shape
            width = clip.text["out_dim"]
            return class_text.embed_classes(
                info, mode=mode, embed=lambda rows: np.ones((len(rows), width))
            )
        return class_text.class_text(info, mode=mode, tower=tower, cache=config.text.cache)

    def guidance_text() -> ClassText:
        made, source = text(config.text.guidance), config.guidance.sentences
        if tower is None or not source:
            return made
        embed = class_text.embedding(tower, cache=config.text.cache)
        sentences = enrichment.read_sentences(source, info)
        return enrichment.enrich(made, sentences, clusters=config.guidance.clusters, embed=embed)

    frozen = state_lib.Frozen(text=text(config.text.decoder))
    if guided:
        frozen = frozen.replace(
            guidance_params=build_step.cast(
                params(build_lib.guidance_tower(config, clip.image)), config.model.guidance_dtype
            ),
            guidance_text=guidance_text(),
        )
    start = None
    if config.model.backbone in build_lib.CLIP_BACKBONES and config.model.init == "clip":
        start = params(build_lib.backbone(config, clip.image))
    elif config.model.similarity in ("clip", "both"):
        start = {"clip": params(build_lib.backbone(config, clip.image).clip)}
    return _ClipParts(
        frozen=frozen, abstract=absent, sizes=clip.image, start=start, text_tower=tower
    )


def training_length(config: ConfigDict, images_per_epoch: int) -> tuple[int, int]:
    """(steps of the whole training, steps of an epoch)."""
    epoch = max(1, (config.epoch_images or images_per_epoch) // config.batch)
    return config.steps or max(1, round(config.epochs * epoch)), epoch


def _loop_schedule(
    config: ConfigDict, modules: StepModules, total_steps: int, epoch: int
) -> LoopSchedule:
    """Evaluation after epochs 0, n, 2n, … (docs/semivl.md 9.22), or every so many steps."""
    settings = config.evaluation
    if settings.every_steps:
        due = range(settings.every_steps, total_steps + 1, settings.every_steps)
    else:
        due = range(epoch, total_steps + 1, epoch * settings.every_epochs)
    return LoopSchedule(
        total_steps=total_steps,
        evaluation_steps=frozenset(due),
        checkpoint_every=config.checkpoint.every,
        log_every=config.log_every,
        max_skipped=config.max_skipped_steps,
        batch=config.batch * (1 + len(modules.method.streams)),
    )
