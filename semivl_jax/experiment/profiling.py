"""Profiler traces of chosen training steps.

    --config.profile=100:105

writes the trace of steps 100 to 105 to `profile/` in the workdir. TensorBoard (with its profile plugin) and
Perfetto open it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from semivl_jax.train.loop import StepFunction
from semivl_jax.types import PyTree


def span(profile: str) -> tuple[int, int] | None:
    """First and last step of `profile`, counted from 1; None for an empty text.

    Raises:
      ValueError: anything but FIRST:LAST with 1 <= FIRST <= LAST.
    """
    if not profile:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", profile)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(
            f"profile = {profile!r} is not FIRST:LAST, steps counted from 1; write 100:105, for example"
        )
    return int(match[1]), int(match[2])


@contextmanager
def traced(
    step_function: StepFunction, profile: str, *, next_step: int, folder: Path
) -> Iterator[StepFunction]:
    """The step function, traced in the steps of `profile`; `next_step` steps were taken before.

    A run that ends within the span keeps the trace up to there; one resumed after FIRST is not traced.
    """
    steps = span(profile)
    if steps is None:
        yield step_function
        return
    number, tracing = next_step, False

    def stop() -> None:
        nonlocal tracing
        tracing = False
        jax.profiler.stop_trace()
        print(f"profile of steps {steps[0]} to {number}: {folder}", flush=True)

    def step(state: PyTree, batch: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        nonlocal number, tracing
        number += 1
        if number == steps[0]:
            jax.profiler.start_trace(folder)
            tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            out = step_function(state, batch)
        if tracing and number == steps[1]:
            jax.block_until_ready(out)
            stop()
        return out

    try:
        yield step
    finally:
        if tracing:
            stop()
