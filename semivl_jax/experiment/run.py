"""What `main` can do with a configuration: train, evaluate, check."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from semivl_jax import compilation, utils
from semivl_jax.config import validate
from semivl_jax.data import prefetch, splits
from semivl_jax.data.examples import EvalExample, EvalExamples
from semivl_jax.evaluation import samples as samples_lib
from semivl_jax.evaluation.confusion import format_table
from semivl_jax.evaluation.evaluator import Evaluation, Evaluator
from semivl_jax.experiment import dry_run as check_lib
from semivl_jax.experiment import experiment as experiment_lib
from semivl_jax.experiment import figures, profiling, run_log
from semivl_jax.experiment import pseudo_label_quality as targets_lib
from semivl_jax.experiment import workdir as workdir_lib
from semivl_jax.experiment.experiment import Data, Experiment
from semivl_jax.inference import bundle
from semivl_jax.reporting import page as report_page
from semivl_jax.train import distributed, loop, programs, sharding
from semivl_jax.train.agreement import Agreement
from semivl_jax.train.checkpoint import Checkpoints, Progress
from semivl_jax.train.metrics import MetricWriter
from semivl_jax.train.state import TrainState
from semivl_jax.types import Batch, PyTree


def train(
    config: ConfigDict, workdir: Path, *, kept: Mapping[str, compilation.ReadAhead] | None = None
) -> None:
    """Trains from the newest checkpoint of the workdir, or from the start, to the end.

    `kept` may hold the programs of the training step already (`compilation.read_step`).
    """
    _begin(config)
    data, experiment = _open(config)
    evaluator = experiment.evaluator()  # checks its options, before the folder is taken
    _check_start(experiment, workdir)
    workdir_lib.claim(workdir, config, writes=distributed.is_main())
    workdir_lib.claim_lists(workdir, data.lists(), writes=distributed.is_main())
    agree = Agreement() if jax.process_count() > 1 else None
    with loop.StopSignal(agree) as stop, _checkpoints(workdir, config) as checkpoints:
        state, progress = _start(experiment, checkpoints)
        with MetricWriter(
            workdir, next_step=progress.next_step, evaluated=progress.evaluated
        ) as writer:
            evaluation = _Evaluation(
                experiment, evaluator, data, workdir, picture=writer.picture, between=stop.check
            )
            log = run_log.RunLog(workdir)
            log.discard_evaluations_after(progress.evaluated)
            metadata = run_log.metadata(experiment, data, score=evaluation.score)
            hooks = loop.Hooks(
                batches=functools.partial(_batches, experiment, data),
                evaluate=evaluation,
                score=evaluation.score,
                export=functools.partial(_export, experiment, workdir, evaluation),
            )
            step = programs.Step(experiment.parts, experiment.mesh, state)
            ended = progress.next_step >= experiment.clock.total_steps
            session = log.session(metadata, first_step=progress.next_step)
            if not ended:
                step, line = step.compile(
                    experiment.constants,
                    state,
                    experiment.abstract_batch(),
                    kept=kept,
                    built_from=experiment.built_from(),
                )
                distributed.say(f"training step: {line}")
                distributed.meet("training step compiled")
            profiled = profiling.traced(
                functools.partial(step, experiment.constants),
                config.profile if distributed.is_main() else "",
                next_step=progress.next_step,
                folder=workdir / "profile",
            )
            with nullcontext() if ended else session, profiled as step_function:
                loop.run(
                    step_function,
                    state,
                    progress,
                    clock=experiment.clock,
                    hooks=hooks,
                    checkpoints=checkpoints,
                    writer=writer,
                    stop=stop,
                )
    _report(workdir, progress)


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """Evaluates the newest checkpoint, prints the table, draws; the scores go to `evaluation.json`.

    Where the run has none, or there is no run, `model.checkpoint` is evaluated, and left in `serving` for
    prediction. The curves of the training stay as they are.
    """
    foreign = bool(config.model.checkpoint) and not _has_checkpoint(workdir)
    if not foreign:
        workdir_lib.check(workdir, config)
    _begin(config)
    data, experiment = _open(config)
    if foreign:
        _check_start(experiment, workdir)
        workdir_lib.claim(workdir, config, writes=distributed.is_main())
        # Its average is the same weights; evaluating them once is enough.
        state = experiment.init_state().replace(ema=None, ema_batch_stats=None)
        progress = Progress()
    else:
        with _checkpoints(workdir, config) as checkpoints:
            state, progress = checkpoints.restore(experiment.abstract_state())
    evaluation = _Evaluation(experiment, experiment.evaluator(), data, workdir)
    values = evaluation(state, progress.next_step)
    if distributed.is_main():
        scores = json.dumps({"step": progress.next_step, **values}, indent=1)
        utils.write_text(workdir / "evaluation.json", scores + "\n")
    if foreign:  # so that it can predict, too
        _export(experiment, workdir, evaluation, state)


def check(config: ConfigDict, workdir: Path) -> None:
    """Goes through the whole step with shapes only and prints what the run would take."""
    del workdir
    distributed.say(check_lib.report(outlined(config)))


def outlined(config: ConfigDict) -> Experiment:
    """The parts of a run for tracing; of public data sets and weights only facts are needed."""
    _begin(config)
    facts = experiment_lib.published_facts(config)
    if facts is None:
        return _open(config)[1]
    info, images = facts
    return experiment_lib.build(config, info, images_per_epoch=images, outline=True)


def _begin(config: ConfigDict) -> None:
    """Says what is wrong with options and devices before anything is prepared."""
    validate(config)
    experiment_lib.mesh_of(config)
    compilation.keep(config.compilation_cache)


def _open(config: ConfigDict) -> tuple[Data, Experiment]:
    data = experiment_lib.open_data(config)
    distributed.say(splits.describe_split(data.train, data.split))
    stream = data.split.unlabelled if config.method.semi_supervised else data.split.labelled
    experiment = experiment_lib.build(config, data.info, images_per_epoch=len(stream))
    return data, experiment


@contextmanager
def _checkpoints(workdir: Path, config: ConfigDict) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def _start(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """The order in words: the newest own checkpoint, else model.checkpoint, else the weights of single
    parts (ImageNet's, CLIP's), else random ones.
    """
    if checkpoints.latest_step() is None:
        return experiment.init_state(), Progress()
    state, progress = checkpoints.restore(experiment.abstract_state())
    distributed.say(f"going on at step {progress.next_step} of {experiment.clock.total_steps}")
    return state, progress


def _has_checkpoint(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("[0-9]*"))


def _check_start(experiment: Experiment, workdir: Path) -> None:
    """Reads the weights that a new run begins with, before its folder is taken."""
    if not _has_checkpoint(workdir) and experiment.start is not None and _named(experiment.config):
        distributed.say(f"starting from {_named(experiment.config)}")


def _named(config: ConfigDict) -> str:
    model = config.model
    return model.checkpoint or ", ".join(
        filter(None, (model.backbone_weights, model.conv_encoder_weights))
    )


@contextmanager
def _batches(experiment: Experiment, data: Data, start: int) -> Iterator[Iterator[Batch]]:
    place = sharding.batch_sharding(experiment.mesh)
    ahead = experiment.config.data.prefetch
    with prefetch.feed(experiment.pipeline(data), start, sharding=place, ahead=ahead) as batches:
        yield batches


def _export(
    experiment: Experiment, workdir: Path, evaluation: _Evaluation, state: TrainState
) -> None:
    variables = sharding.local(experiment.mesh, state.teacher())
    if not distributed.is_main():
        return
    bundle.export(
        workdir / "serving",
        variables,
        text=experiment.local_constants.text,
        tower=experiment.text_tower,
        clip_sizes=experiment.clip_sizes,
        info=experiment.info,
        config=experiment.config,
        metrics=evaluation.newest,
    )


class _Evaluation:
    """Scores student and average on the validation part, prints, draws; the loop's evaluate hook."""

    def __init__(
        self,
        experiment: Experiment,
        evaluator: Evaluator,
        data: Data,
        workdir: Path,
        *,
        picture: Callable[[int, str, np.ndarray], None] | None = None,
        between: Callable[[], None] | None = None,
    ) -> None:
        """`picture(step, name, image)` gets every picture; `between()` is called between images.

        Every process calls it equally often while images are scored; where there are several, only the
        first one draws, and does not call it meanwhile.
        """
        self._experiment, self._data = experiment, data
        self._picture, self._between = picture, between
        self._evaluator = evaluator
        self._gallery = figures.Gallery(experiment, workdir / "pictures")
        self._samples, self._log = workdir / "samples", run_log.RunLog(workdir)
        held_back = experiment.config.evaluation.held_back
        self._held_back = targets_lib.HeldBack(experiment, data, images=held_back)
        recipe = experiment.parts.recipe
        self._averages = recipe.semi_supervised and recipe.teacher == "ema"
        self.score = "eval/miou_ema" if self._averages else "eval/miou"
        self.newest: Mapping[str, float] = {}

    def __call__(self, state: TrainState, step: int) -> Mapping[str, float]:
        """Scalars by name; the per-class IoU is that of the weights that decide what is best."""
        mesh = self._experiment.mesh
        teacher = student = sharding.local(mesh, state.student())
        result = self._evaluator.evaluate(student, self._examples("evaluating the student"))
        values = {"eval/miou": result.miou}
        confusions = {"student": result.confusion}
        if self._averages and state.ema is not None:
            teacher = sharding.local(mesh, state.teacher())
            result = self._evaluator.evaluate(teacher, self._examples("evaluating the average"))
            values["eval/miou_ema"] = result.miou
            confusions["ema"] = result.confusion
        quality = self._held_back.score(teacher)
        if quality is not None:
            values |= quality.scalars()
        names = self._experiment.info.classes
        values |= {
            f"eval/iou/{name}": float(iou) for name, iou in zip(names, result.iou, strict=True)
        }
        scores = ", ".join(
            f"{name[5:]} {values[name]:.2f}" for name in values if "/iou/" not in name
        )
        counts = f"{result.images} images, {result.compilations} compilations so far"
        if distributed.is_main():
            print(f"\nevaluation at step {step}: {scores} ({counts})")
            print(format_table(result.confusion, names), flush=True)
            self._write(step, confusions, quality, result)
            self._draw(teacher, step, result)
        self.newest = {"step": step, **values}
        return values

    def _write(
        self,
        step: int,
        confusions: Mapping[str, np.ndarray],
        quality: targets_lib.Quality | None,
        result: Evaluation,
    ) -> None:
        labels = {}
        if quality is not None:
            counts = {"pseudo_label": quality.pseudo, "guidance": quality.guidance}
            labels = {name: count for name, count in counts.items() if count is not None}
        ids = EvalExamples(self._data.validation).ids
        image_iou = {id: result.image_iou[id] for id in ids}
        self._log.write_evaluation(step, confusion=confusions, labels=labels, image_iou=image_iou)

    def _draw(self, teacher: PyTree, step: int, result: Evaluation) -> None:
        examples = EvalExamples(self._data.validation)
        made = self._gallery.samples(teacher, examples, self._evaluator, result.image_iou)
        between = self._between if jax.process_count() == 1 else None
        samples = []
        for sample in made:
            samples.append(sample)
            if between is not None:
                between()
        for name, picture in self._gallery.draw(step, samples):
            if self._picture is not None:
                self._picture(step, name, picture)
        samples_lib.save(self._samples, step, samples, palette=self._experiment.info.palette)

    def _examples(self, work: str) -> Iterator[EvalExample]:
        """The share of this process."""
        index, count = jax.process_index(), jax.process_count()
        own, most = (
            EvalExamples(self._data.validation, process_index=p, process_count=count)
            for p in (index, 0)
        )
        between, show = self._between or (lambda: None), distributed.is_main()
        with utils.Progress(work, total=len(own), unit="images", show=show) as shown:
            for example in own:
                between()
                yield example
                shown.update()
        for _ in range(len(most) - len(own)):
            between()


def _report(workdir: Path, progress: Progress) -> None:
    if not distributed.is_main():
        return
    page = report_page.write_after_training(workdir)
    print(
        f"finished after {progress.next_step} steps; best mIoU {progress.best_score:.2f} at step "
        f"{progress.best_step}\n"
        f"pictures:    {workdir / 'pictures'}\n"
        f"curves:      {workdir / 'metrics.jsonl'}, {workdir / 'tensorboard'}{os.sep}\n"
        f"best model:  {workdir / 'serving'}" + (f"\nreport:      {page}" if page else "")
    )
