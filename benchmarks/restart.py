"""How long a run that was stopped takes until its next step.

    python -m benchmarks.restart --starts=3 -- --config=configs/demo.py

Starts the training whose options stand behind `--` in a new folder, stops it by SIGTERM after its first step,
and starts it again and again, each time up to the line that says that the step is ready. Text, programs and
checkpoints are then where a user's are. Prints a line per start, with what the run said about its step.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import utils

_READY = re.compile(r"training step: ([^;]*)")
_STEPPED = re.compile(r"step (\d+)/")


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("benchmarks.restart", __doc__)
    made.add_argument("--starts", type=int, default=3, help="starts after the first one")
    made.add_argument("options", nargs="+", help="options of semivl_jax.main, without --workdir")
    return made


def seconds_until(wanted: re.Pattern[str], options: Sequence[str]) -> tuple[float, str]:
    """Starts the command, waits for a line that matches, stops it; the time of that line and its first group.

    Raises:
      ValueError: the command ended before.
    """
    start = time.monotonic()
    arguments = [sys.executable, "-u", "-m", "semivl_jax.main", *options]
    lines = []
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            found = wanted.match(line)
            if found:
                seconds = time.monotonic() - start
                process.send_signal(signal.SIGTERM)
                process.communicate()
                return seconds, found[1]
    raise ValueError(f"the training ended first:\n{''.join(lines[-20:])}")


def main() -> None:
    """Prints a line per start."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = [
            *options.options,
            f"--workdir={Path(folder) / 'run'}",
            f"--config.compilation_cache={Path(folder) / 'programs'}",  # so that the first start compiles
            "--config.log_every=1",
        ]
        seconds, _ = seconds_until(_STEPPED, given)
        print(f"first start, to the end of a step: {seconds:.1f} s", flush=True)
        for number in range(1, options.starts + 1):
            seconds, said = seconds_until(_READY, given)
            print(f"start {number}: step ready after {seconds:.1f} s ({said})", flush=True)


if __name__ == "__main__":
    main()
