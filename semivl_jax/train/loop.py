"""The training loop: evaluate, save, draw the next batch, step, log, again.

In: a compiled step, a stream of batches, an evaluation. The order makes a run resumable: between two steps
first the evaluation that is due, then the checkpoint that is due, then the next batch. If anything fails
between two steps (a signal, an image that cannot be read), the state is saved before the run ends.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

import jax
from tqdm import tqdm

from semivl_jax.train.checkpoint import Checkpoints, LoopState
from semivl_jax.train.metrics import MetricWriter
from semivl_jax.train.state import TrainState
from semivl_jax.types import Batch
from semivl_jax.utils import on_terminal

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


class Stopped(Exception):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has saved its state."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class NonFiniteLossError(ValueError):
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSchedule:
    """When things are due, in steps. An evaluation or checkpoint is always due at the end."""

    total_steps: int
    evaluation_steps: frozenset[int]
    checkpoint_every: int
    log_every: int
    max_skipped: int
    batch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls.

    batches(step): the stream from that step on, as a context manager over an iterator.
    evaluate(state, step): scalars by name; `score` names the one that decides which state is best.
    export(state): called for every new best state.
    """

    batches: Callable[[int], AbstractContextManager[Iterator[Batch]]]
    evaluate: Callable[[TrainState, int], Mapping[str, float]]
    score: str
    export: Callable[[TrainState], None]


class StopSignal:
    """Records the first SIGTERM or Ctrl-C; Ctrl-C after that interrupts at once.

    Further SIGTERMs are ignored, so that the state can be saved. With several processes, `agree` gives all of
    them the signal of one at the same check (`distributed.Agreement`).
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self.received: int | None = None
        self._agree = agree
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler of a library, which Python cannot put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises `Stopped` once a signal came; all processes must check equally often."""
        number = self.received or 0
        if self._agree is not None:
            number = self._agree(number)
        if number:
            raise Stopped(number)


def run(
    step_function: StepFunction,
    state: TrainState,
    progress: LoopState,
    *,
    schedule: LoopSchedule,
    hooks: Hooks,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    stop: StopSignal,
) -> TrainState:
    """Trains from `progress` to the end and returns the last state.

    Raises:
      Stopped: after a signal, with the state saved.
      NonFiniteLossError: after more than `max_skipped` non-finite steps in a row, seen when the next
        scalars are logged; the checkpoints stay as they are.
      Exception: whatever the stream or an evaluation raises, with the state saved.
    """
    log = _Log(schedule, writer, progress)
    try:
        with hooks.batches(progress.next_step) as batches, log:
            while True:
                with _saved_on_error(state, progress, checkpoints, stop):
                    _at_boundary(state, progress, schedule, hooks, checkpoints, log)
                    if progress.next_step >= schedule.total_steps:
                        return state
                    stop.check()
                    batch = next(batches)
                with jax.transfer_guard("disallow"):
                    state, metrics = step_function(state, batch)
                progress.next_step += 1
                log.step(progress, metrics)
    finally:
        checkpoints.wait()


@contextmanager
def _saved_on_error(
    state: TrainState, progress: LoopState, checkpoints: Checkpoints, stop: StopSignal
) -> Iterator[None]:
    """Saves the state before an error between two steps ends the run.

    An error after a signal is raised as `Stopped`: the signal may have ended worker processes as well.
    """
    try:
        yield
    except NonFiniteLossError:
        raise
    except Exception as error:
        # Several processes can only save together, and only a signal reaches all of them.
        alone = jax.process_count() == 1
        if alone or isinstance(error, Stopped):
            checkpoints.save(state, progress)
        if alone:
            stop.check()
        raise


def _at_boundary(
    state: TrainState,
    progress: LoopState,
    schedule: LoopSchedule,
    hooks: Hooks,
    checkpoints: Checkpoints,
    log: _Log,
) -> None:
    """Evaluates, exports and saves what is due after `progress.next_step` updates."""
    step = progress.next_step
    last = step >= schedule.total_steps
    if (last or step in schedule.evaluation_steps) and progress.evaluated != step:
        log.flush()
        with log.paused():
            values = hooks.evaluate(state, step)
        log.evaluation(step, values)
        if values[hooks.score] > progress.best_score:
            hooks.export(state)
            progress.best_score, progress.best_step = values[hooks.score], step
        progress.evaluated = step  # last: where the export failed, the resumed run evaluates again
    if last or (step and step % schedule.checkpoint_every == 0):
        log.flush()
        with log.paused():
            checkpoints.save(state, progress)


class _Log:
    """Progress bar or plain lines, and the scalars of every `log_every`-th step.

    Scalars are fetched after the next step is dispatched, so that the device does not wait for the host.
    """

    def __init__(self, schedule: LoopSchedule, writer: MetricWriter, progress: LoopState) -> None:
        self._schedule, self._writer, self._progress = schedule, writer, progress
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._first = progress.next_step + 1
        # Step and time of the last fetched scalars
        self._measured = (progress.next_step, time.monotonic())
        self._bar: tqdm | None = None
        self._prints = jax.process_index() == 0

    def __enter__(self) -> _Log:
        if self._prints and on_terminal():
            self._bar = tqdm(
                total=self._schedule.total_steps,
                initial=self._first - 1,
                unit="step",
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Stopped):
            self.flush()
        if self._bar is not None:
            self._bar.close()

    def step(self, progress: LoopState, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the step just dispatched."""
        if self._bar is not None:
            self._bar.update()
        step = progress.next_step
        self.flush()
        if step % self._schedule.log_every == 0 or step in (
            self._first,
            self._schedule.total_steps,
        ):
            self._pending = (step, metrics)

    def flush(self) -> None:
        """Fetches and writes what is pending."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
        rate = self._rate(step)
        values["train/images_per_s"] = rate * self._schedule.batch
        self._writer.scalars(step, values)
        if self._prints:
            self._show(step, values, rate)
        skipped = int(values["train/skipped"])
        if skipped > self._schedule.max_skipped:
            raise NonFiniteLossError(
                f"loss or gradient was not finite in {skipped} steps in a row, the first of them step "
                f"{step - skipped + 1}; they changed no weight, and checkpoints/ keeps what was saved "
                "before. Lower optim.lr and start in another --workdir, or allow more with "
                f"max_skipped_steps (now {self._schedule.max_skipped})"
            )

    def _rate(self, step: int) -> float:
        """Steps per second since the previous scalars."""
        before, now = self._measured, time.monotonic()
        self._measured = (step, now)
        return (step - before[0]) / max(now - before[1], 1e-9)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of an evaluation."""
        self._writer.scalars(step, values)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count for the rate."""
        start = time.monotonic()
        yield
        step, measured = self._measured
        self._measured = (step, measured + time.monotonic() - start)

    def _show(self, step: int, values: Mapping[str, float], rate: float) -> None:
        best = self._progress.best_score
        score = f"{best:.1f}" if best >= 0 else "-"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {values['train/loss']:.3f}, best mIoU {score}")
            return
        speed = ""
        if rate and step != self._first:  # its time includes compilation
            left = (self._schedule.total_steps - step) / rate
            speed = f"{rate * self._schedule.batch:.1f} images/s  {left / 60:.1f} min left  "
        print(
            f"step {step}/{self._schedule.total_steps}  loss {values['train/loss']:.4f}  {speed}"
            f"best mIoU {score}",
            flush=True,
        )
