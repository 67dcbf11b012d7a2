"""What `main` does with a configuration: train, evaluate, check, measure guidance."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import jax
from ml_collections import ConfigDict

from semivl_jax import compiled_programs, utils
from semivl_jax.config import drop_other_fields, validate
from semivl_jax.data import check_data, prefetch, splits
from semivl_jax.experiment import data as data_lib
from semivl_jax.experiment import dry_run, guidance_quality, profiling, run_folder, run_log
from semivl_jax.experiment import experiment as experiment_lib
from semivl_jax.experiment import workdir as workdir_lib
from semivl_jax.experiment.data import Data
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.experiment.run_evaluation import RunEvaluation
from semivl_jax.experiment.run_folder import RunFolder
from semivl_jax.inference import bundle
from semivl_jax.reporting import checks, page, read
from semivl_jax.train import checkpoint, distributed, loop, methods, sharding
from semivl_jax.train.checkpoint import Checkpoints, LoopState
from semivl_jax.train.metrics import MetricWriter
from semivl_jax.train.state import TrainState
from semivl_jax.train.step import jit_train_step
from semivl_jax.types import Batch


def train(config: ConfigDict, workdir: str) -> None:
    """Trains from the newest checkpoint of the workdir, or from the start, to the end.

    The workdir is a folder or `gs://BUCKET/FOLDER`.
    """
    _begin(config)
    with run_folder.opened(workdir) as folder:
        _train(config, folder)


def _train(config: ConfigDict, folder: RunFolder) -> None:
    data, experiment = _open(config)
    evaluator = experiment.evaluator()  # checks its options, before the folder is claimed
    _check_start(experiment, folder)
    workdir = folder.path
    workdir_lib.claim(workdir, config, writes=distributed.is_main())
    workdir_lib.claim_lists(workdir, data.lists(), writes=distributed.is_main())
    _warn(distributed.main_first(lambda: checkpoint.set_aside_damaged(folder.checkpoints)))
    agree = distributed.Agreement() if jax.process_count() > 1 else None
    with loop.StopSignal(agree) as stop, closing(_checkpoints(folder, config)) as checkpoints:
        state, progress = _start(experiment, checkpoints)
        with MetricWriter(
            workdir, next_step=progress.next_step, evaluated=progress.evaluated
        ) as writer:
            evaluation = RunEvaluation(
                experiment, evaluator, data, workdir, picture=writer.picture, between=stop.check
            )
            log = run_log.RunLog(workdir)
            log.discard_evaluations_after(progress.evaluated)
            hooks = loop.Hooks(
                batches=functools.partial(_batches, experiment, data),
                evaluate=evaluation,
                score=evaluation.score,
                export=functools.partial(_export, experiment, workdir, evaluation),
            )
            ended = progress.next_step >= experiment.schedule.total_steps
            metadata = run_log.metadata(experiment, data, score=evaluation.score)
            session = log.session(metadata, first_step=progress.next_step)
            step = profiling.traced(
                _step_function(experiment, state, compiled=not ended),
                config.profile if distributed.is_main() else "",
                next_step=progress.next_step,
                folder=workdir / "profile",
            )
            with nullcontext() if ended else session, step as step_function:
                loop.run(
                    step_function,
                    state,
                    progress,
                    schedule=experiment.schedule,
                    hooks=hooks,
                    checkpoints=checkpoints,
                    writer=writer,
                    stop=stop,
                )
    _report(folder, progress)


def _step_function(
    experiment: Experiment, state: TrainState, *, compiled: bool
) -> loop.StepFunction:
    """The jitted training step; all processes wait until each has compiled it."""
    step = jit_train_step(experiment.modules, experiment.mesh, state)
    if compiled:
        lowered = step.lower(
            experiment.frozen, experiment.abstract_state(), experiment.abstract_batch()
        )
        step = lowered.compile()
        utils.trim_memory()
        hardware = dry_run.hardware(experiment.mesh)
        distributed.log_main(f"training step for {hardware}: {dry_run.compiled_cost(step)}")
        distributed.barrier("training step compiled")
    return functools.partial(step, experiment.frozen)


def evaluate(config: ConfigDict, workdir: str) -> None:
    """Evaluates the newest checkpoint, prints the table, draws; the scores go to `evaluation.json`.

    Without a checkpoint of the run, `model.checkpoint` is evaluated and exported to `serving/`. The logged
    metrics are not changed. Beside a process that trains in the working directory, nothing is drawn.
    """
    drop_other_fields(config)  # as the run saved it
    with run_folder.opened(workdir, required=bool(config.model.checkpoint)) as folder:
        foreign = bool(config.model.checkpoint) and not _has_checkpoint(folder)
        if not foreign:
            workdir_lib.check(folder.path, config)
        _begin(config)
        if not folder.locked:
            distributed.log_main("another process trains here: pictures and samples stay its own")
        _evaluate(config, folder, foreign=foreign)


def _evaluate(config: ConfigDict, folder: RunFolder, *, foreign: bool) -> None:
    data, experiment = _open(config)
    workdir = folder.path
    if foreign:
        _check_start(experiment, folder)
        workdir_lib.claim(workdir, config, writes=distributed.is_main())
        # The EMA would be the same weights.
        state = experiment.init_state().replace(ema_params=None, ema_batch_stats=None)
        progress = LoopState()
    else:
        with closing(_checkpoints(folder, config, read_only=True)) as checkpoints:
            _warn(checkpoints.verify())
            state, progress = checkpoints.restore(experiment.abstract_state())
    evaluation = RunEvaluation(
        experiment, experiment.evaluator(), data, workdir, draws=folder.locked
    )
    values = evaluation(state, progress.next_step)
    if distributed.is_main():
        scores = json.dumps({"step": progress.next_step, **values}, indent=1)
        utils.write_text(workdir / "evaluation.json", scores + "\n")
    if foreign:
        _export(experiment, workdir, evaluation, state)


def guidance(config: ConfigDict, workdir: str) -> None:
    """Prints how right the variants of guidance are on the labelled images; the report will show it, too.

    Raises:
      ValueError: the method is not guided.
    """
    _begin(config)
    if not methods.create(config.method).guided:
        raise ValueError(
            f"method.name = {config.method.name!r} has no guidance to measure; choose semivl, for example"
        )
    data, experiment = _open(config)
    table = guidance_quality.measure(experiment, data)
    with run_folder.opened(workdir) as folder:
        if distributed.is_main():
            guidance_quality.write(folder.path, table)
    distributed.log_main(guidance_quality.as_text(table))


def check(config: ConfigDict, *, compiled: bool = False) -> None:
    """Traces the whole step with shapes only and prints parameters, memory and cost; see `dry_run.report`."""
    distributed.log_main(dry_run.report(abstract_experiment(config), compiled=compiled))


def abstract_experiment(config: ConfigDict) -> Experiment:
    """The experiment for tracing: public data sets and weights need not exist."""
    _begin(config)
    facts = data_lib.published_facts(config)
    if facts is None:
        return _open(config)[1]
    info, images = facts
    return experiment_lib.build(config, info, images_per_epoch=images, abstract=True)


def _begin(config: ConfigDict) -> None:
    """Checks options and devices before anything is prepared."""
    drop_other_fields(config)
    validate(config)
    experiment_lib.mesh_of(config)
    profiling.span(config.profile)
    compiled_programs.use_cache(config.compilation_cache)


def _open(config: ConfigDict) -> tuple[Data, Experiment]:
    data = data_lib.open_data(config)
    distributed.log_main(splits.describe_split(data.train, data.split))
    notes = check_data.check(data.train, data.validation, data.split)
    if config.data.dataset == "folder" and not config.data.rare_class_share:
        notes += check_data.describe_rare(data.train, data.split)
    for line in notes:
        distributed.log_main(line)
    images = data.split.unlabelled or data.split.labelled
    experiment = experiment_lib.build(config, data.info, images_per_epoch=len(images))
    return data, experiment


def _checkpoints(folder: RunFolder, config: ConfigDict, *, read_only: bool = False) -> Checkpoints:
    return Checkpoints(
        folder.checkpoints,
        keep=config.checkpoint.keep,
        read_only=read_only,
        before_save=folder.save,
    )


def _warn(notes: Iterable[str]) -> None:
    for note in notes:
        distributed.log_main(f"warning: {note}")


def _start(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, LoopState]:
    """The newest own checkpoint, else model.checkpoint, else weights of single parts, else random ones."""
    if checkpoints.latest_step() is None:
        return experiment.init_state(), LoopState()
    state, progress = checkpoints.restore(experiment.abstract_state())
    distributed.log_main(
        f"going on at step {progress.next_step} of {experiment.schedule.total_steps}"
    )
    return state, progress


def _has_checkpoint(folder: RunFolder) -> bool:
    return bool(checkpoint.steps(folder.checkpoints))


def _check_start(experiment: Experiment, folder: RunFolder) -> None:
    """Reads the weights of a new run before its folder is claimed."""
    if not _has_checkpoint(folder) and experiment.start is not None and _named(experiment.config):
        distributed.log_main(f"starting from {_named(experiment.config)}")


def _named(config: ConfigDict) -> str:
    model = config.model
    return model.checkpoint or ", ".join(
        filter(None, (model.backbone_weights, model.conv_encoder_weights))
    )


def _batches(
    experiment: Experiment, data: Data, start: int
) -> AbstractContextManager[Iterator[Batch]]:
    return prefetch.prefetch_to_device(
        experiment.pipeline(data),
        start,
        sharding=sharding.batch_sharding(experiment.mesh),
        ahead=experiment.config.data.prefetch,
    )


def _export(
    experiment: Experiment, workdir: Path, evaluation: RunEvaluation, state: TrainState
) -> None:
    variables = sharding.local(experiment.mesh, state.teacher())
    if not distributed.is_main():
        return
    bundle.save(
        workdir / "serving",
        variables,
        text=experiment.local_frozen.text,
        tower=experiment.text_tower,
        clip_sizes=experiment.clip_sizes,
        info=experiment.info,
        config=experiment.config,
        metrics=evaluation.newest,
    )


def _report(folder: RunFolder, progress: LoopState) -> None:
    if not distributed.is_main():
        return
    report, name = page.write_after_training(folder.path), folder.name.rstrip("/")
    print(
        f"finished after {progress.next_step} steps; best mIoU {progress.best_score:.2f} at step "
        f"{progress.best_step}\n"
        f"pictures:    {name}/pictures\n"
        f"curves:      {name}/metrics.jsonl, {name}/tensorboard/\n"
        f"best model:  {name}/serving" + (f"\nreport:      {name}/{report.name}" if report else "")
    )
    if report:
        for finding in checks.findings(read.load(folder.path)):
            print(f"warning:     {finding}")
