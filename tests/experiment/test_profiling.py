"""Traces of chosen steps."""

import jax
import jax.numpy as jnp
import pytest

from semivl_jax.experiment import profiling


def count(state, batch):
    return state + batch, {"loss": state}


def run(profile, folder, *, next_step=0, steps=6):
    compiled = jax.jit(count)
    state = jnp.zeros(())
    with profiling.traced(compiled, profile, next_step=next_step, folder=folder) as step:
        for _ in range(steps):
            state, _ = step(state, jnp.ones(()))
    return float(state)


def traces(folder):
    return list(folder.rglob("*.xplane.pb"))


# Newer versions of JAX warn from native code, where an error ends the process.
@pytest.mark.filterwarnings("ignore:builtin type event_stats has no __module__")
def test_the_steps_of_the_span_are_in_the_trace_and_no_others(tmp_path, capsys):
    assert run("3:4", tmp_path) == 6
    assert f"profile of steps 3 to 4: {tmp_path}" in capsys.readouterr().out
    (trace,) = traces(tmp_path)
    events = (
        event
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
    )
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert steps == [3, 4]


def test_a_run_that_ends_within_the_span_keeps_its_trace(tmp_path, capsys):
    run("5:100", tmp_path)
    assert "profile of steps 5 to 6" in capsys.readouterr().out
    assert len(traces(tmp_path)) == 1


@pytest.mark.parametrize(("profile", "next_step"), [("", 0), ("3:4", 3), ("7:9", 0)])
def test_nothing_is_traced_without_its_first_step(tmp_path, profile, next_step):
    assert run(profile, tmp_path, next_step=next_step) == 6
    assert not traces(tmp_path)


@pytest.mark.parametrize("profile", ["5", "5:4", "0:3", "a:b", "1:2:3"])
def test_a_span_that_is_none_is_refused(profile):
    with pytest.raises(ValueError, match=f"profile = '{profile}' is not FIRST:LAST"):
        profiling.span(profile)
