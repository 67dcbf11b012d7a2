"""The order of events of a run, without a model: steps add one and nothing is compiled."""

import contextlib
import itertools
import json
import os
import signal

import jax
import numpy as np
import pytest

from semivl_jax.train import loop
from semivl_jax.train.checkpoint import Checkpoints, LoopState
from semivl_jax.train.metrics import MetricWriter
from semivl_jax.train.state import TrainState


class Memory(Checkpoints):
    """Checkpoints in memory: the state's step and the loop state, by step."""

    def __init__(self, happens):
        self.happens, self.saved = happens, {}

    def save(self, state, progress):
        if progress.next_step not in self.saved:
            self.saved[progress.next_step] = (int(state.step), LoopState(**vars(progress)))
            self.happens("save", progress.next_step)

    def wait(self):
        self.happens("wait")


class Run:
    """A run whose scores are given by step; `during` names events that do something more."""

    def __init__(self, workdir, *, scores=None, during=None, agree=None, **schedule):
        self.events, self.workdir = [], workdir
        self.scores, self.during = scores or {}, during or {}
        self.agree = agree
        self.skipped = {}
        self.checkpoints = Memory(self.happens)
        settings = {"total_steps": 6, "evaluation_steps": frozenset({2, 4}), "checkpoint_every": 2,
                    "log_every": 2, "max_skipped": 1, "batch": 3}  # fmt: skip
        self.schedule = loop.LoopSchedule(**{**settings, **schedule})

    def __call__(self, progress=None):
        self.progress = progress or LoopState()
        state = TrainState(np.int32(self.progress.next_step), np.int32(0), {}, {}, {}, {}, {}, {})
        hooks = loop.Hooks(
            batches=self.batches, evaluate=self.evaluate, score="eval/miou", export=self.export
        )
        with (
            loop.StopSignal(self.agree) as self.stop,
            MetricWriter(self.workdir, next_step=self.progress.next_step) as writer,
        ):
            return loop.run(self.step, state, self.progress, schedule=self.schedule, hooks=hooks,
                            checkpoints=self.checkpoints, writer=writer, stop=self.stop)  # fmt: skip

    @contextlib.contextmanager
    def batches(self, start):
        yield map(self.draw, itertools.count(start))

    def happens(self, *event):
        self.events.append(event)
        self.during.get(event, lambda: None)()

    def draw(self, number):
        """Batches are their own numbers."""
        self.happens("draw", number)
        return number

    def step(self, state, batch):
        number = batch + 1
        self.happens("step", number)
        values = {"loss": number, "skipped": self.skipped.get(number, 0)}
        return state.replace(step=np.int32(number)), jax.device_put(values)

    def evaluate(self, state, step):
        assert int(state.step) == step
        self.happens("evaluate", step)
        self.stop.check()  # as evaluations do between images
        return {"eval/miou": self.scores.get(step, 0.0), "eval/iou/disc": 1.0}

    def export(self, state):
        self.happens("export", int(state.step))

    def lines(self, key):
        text = (self.workdir / "metrics.jsonl").read_text().splitlines()
        return [line["step"] for line in map(json.loads, text) if key in line]


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_evaluate_then_save_then_draw(tmp_path):
    run = Run(tmp_path, scores={2: 50.0, 4: 40.0, 6: 60.0})
    assert int(run().step) == 6
    assert run.events == [
        ("draw", 0), ("step", 1), ("draw", 1), ("step", 2),
        ("evaluate", 2), ("export", 2), ("save", 2), ("draw", 2), ("step", 3), ("draw", 3), ("step", 4),
        ("evaluate", 4), ("save", 4), ("draw", 4), ("step", 5), ("draw", 5), ("step", 6),
        ("evaluate", 6), ("export", 6), ("save", 6), ("wait",),
    ]  # fmt: skip
    assert run.checkpoints.saved[4] == (4, LoopState(4, 4, 50.0, 2))
    assert run.progress == LoopState(next_step=6, evaluated=6, best_score=60.0, best_step=6)
    assert run.lines("eval/miou") == [2, 4, 6]
    assert run.lines("train/loss") == [1, 2, 4, 6]


def test_resumed_run_keeps_the_best_and_does_not_evaluate_again(tmp_path):
    run = Run(tmp_path, scores={4: 40.0, 6: 50.5})
    run(LoopState(next_step=4, evaluated=4, best_score=50.0, best_step=2))
    assert run.events[0] == ("save", 4) and run.events[1] == ("draw", 4)
    assert ("evaluate", 4) not in run.events and ("export", 6) in run.events
    assert run.progress.best_step == 6


def test_a_finished_run_does_nothing(tmp_path):
    run = Run(tmp_path)
    run(LoopState(next_step=6, evaluated=6, best_score=50.0, best_step=2))
    assert not {"draw", "step", "evaluate", "export"} & {event[0] for event in run.events}


def test_signal_during_a_step_finishes_it_and_saves(tmp_path):
    run = Run(tmp_path, during={("step", 3): terminate})
    with pytest.raises(loop.Stopped, match="SIGTERM") as stopped:
        run()
    assert stopped.value.exit_code == 143
    assert run.events[-3:] == [("step", 3), ("save", 3), ("wait",)]
    assert run.checkpoints.saved[3][0] == 3


def test_processes_stop_when_they_agree_on_a_signal(tmp_path):
    numbers = [0]

    def agree(number):
        numbers.append(number)
        return numbers[-2]  # one call late

    run = Run(tmp_path, agree=agree, during={("step", 2): terminate},
              evaluation_steps=frozenset(), checkpoint_every=100)  # fmt: skip
    with pytest.raises(loop.Stopped):
        run()
    assert list(run.checkpoints.saved) == [3]


def test_signal_during_an_evaluation_saves_and_evaluates_again_later(tmp_path):
    run = Run(tmp_path, during={("evaluate", 4): terminate}, checkpoint_every=100)
    with pytest.raises(loop.Stopped):
        run()
    step, progress = run.checkpoints.saved[4]
    assert step == 4 and progress.evaluated == 2 and progress.best_step == 2
    assert run.lines("eval/miou") == [2]
    run.events.clear()
    run.during.clear()
    run(progress)
    assert run.events[0] == ("evaluate", 4)
    assert run.lines("eval/miou")[-2:] == [4, 6]


def test_signal_during_the_last_save_is_too_late_to_stop(tmp_path):
    run = Run(tmp_path, during={("save", 6): terminate})
    run()
    assert run.stop.received == signal.SIGTERM and run.progress.evaluated == 6


def test_second_sigterm_waits_and_ctrl_c_does_not(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with loop.StopSignal() as stop:
        terminate()
        terminate()
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def cannot_be_read():
    raise ValueError("image 7 cannot be read")


def test_an_image_that_cannot_be_read_costs_no_step(tmp_path):
    run = Run(tmp_path, during={("draw", 3): cannot_be_read}, checkpoint_every=100)
    with pytest.raises(ValueError, match="image 7 cannot be read"):
        run()
    assert run.checkpoints.saved[3] == (3, run.progress)
    assert run.events[-1] == ("wait",)


def test_an_evaluation_that_fails_costs_no_step(tmp_path):
    run = Run(tmp_path, during={("evaluate", 4): cannot_be_read}, checkpoint_every=100)
    with pytest.raises(ValueError, match="image 7 cannot be read"):
        run()
    assert run.checkpoints.saved[4][1].evaluated == 2


def test_a_best_model_that_could_not_be_exported_is_evaluated_again(tmp_path):
    run = Run(tmp_path, scores={2: 50.0}, during={("export", 2): cannot_be_read})
    with pytest.raises(ValueError, match="image 7 cannot be read"):
        run()
    assert run.checkpoints.saved[2][1] == LoopState(next_step=2)


def test_error_in_a_step_saves_nothing_because_its_state_is_given_away(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    run = Run(tmp_path, during={("step", 3): fail}, checkpoint_every=100)
    with pytest.raises(RuntimeError, match="out of memory"):
        run()
    assert not run.checkpoints.saved


def test_error_after_a_signal_is_the_signal(tmp_path):
    def workers_die():
        terminate()
        raise RuntimeError("a worker process ended")

    run = Run(tmp_path, during={("draw", 3): workers_die}, checkpoint_every=100)
    with pytest.raises(loop.Stopped):
        run()
    assert 3 in run.checkpoints.saved


def test_too_many_skipped_steps_end_the_run_and_save_nothing_more(tmp_path):
    run = Run(tmp_path)
    run.skipped = {3: 1, 4: 2, 5: 3}
    with pytest.raises(
        loop.NonFiniteLossError, match=r"2 steps in a row, the first of them step 3"
    ):
        run()
    assert list(run.checkpoints.saved) == [2]


def test_rates_leave_out_evaluation_and_saving(tmp_path, monkeypatch, capsys):
    """A step takes 1 s, the first one 100 s, an evaluation 1000 s."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def passes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    during = {("step", n): passes(100.0 if n == 1 else 1.0) for n in range(1, 13)}
    during[("evaluate", 6)] = passes(1000.0)
    run = Run(tmp_path, during=during, total_steps=12, evaluation_steps=frozenset({6}), log_every=3)
    run()
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rates = {line["step"]: line.get("train/images_per_s") for line in map(json.loads, text)
             if "train/loss" in line}  # fmt: skip
    assert list(rates) == [1, 3, 6, 9, 12]
    # Scalars are fetched while the next step runs: an interval is right up to one step.
    assert rates.pop(1) < 0.1  # the first one has the compilation in it
    assert all(1.9 <= rate <= 4.6 for rate in rates.values()), rates
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "step 1/12  loss 1.0000  best mIoU -"


def test_on_a_terminal_a_bar_shows_rate_loss_and_best_score(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Run(tmp_path, scores={2: 50.0, 4: 62.5})()
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1].rpartition("\r")[2]
    assert "6/6" in last and "step/s" in last
    assert "loss 6.000, best mIoU 62.5" in last
    assert not out
