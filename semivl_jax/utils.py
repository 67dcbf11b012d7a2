"""How far long work is: a bar on a terminal, a plain line now and then everywhere else.

Everything goes to the standard error stream, so results on the standard output stay as they are. There are no
colours. A bar redraws its line; where that would be litter (a pipe, a file, TERM=dumb, or NO_COLOR is set)
there is a new line every half minute instead, and none where the work takes less.
"""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines."""


def on_terminal() -> bool:
    """Whether the standard error stream is a screen on which a line can be drawn again."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not plain


class Progress:
    """Counts `update(n)` up to `total` (None: not known) of a `unit`; a context manager.

    Args:
      what: the work, in a word or two.
      unit: the plural of what is counted; "B" for bytes, which are written as kB, MB, GB.
      initial: what was done before.
      show: False says nothing at all, for processes that are not the first.
    """

    def __init__(
        self, what: str, *, total: int | None, unit: str, initial: int = 0, show: bool = True
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._initial = initial
        self._began = self._said = time.monotonic()
        self._bar: tqdm | None = None
        if show and on_terminal():
            self._bar = tqdm(
                desc=what,
                total=total,
                initial=initial,
                unit=unit if unit == "B" else f" {unit}",
                unit_scale=unit == "B",
                dynamic_ncols=True,
                leave=False,
            )
        self._lines = show and self._bar is None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, number: int = 1) -> None:
        """So many more are done."""
        self._done += number
        if self._bar is not None:
            self._bar.update(number)
        elif self._lines and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            print(self._line(self._said - self._began), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        rate = (self._done - self._initial) / seconds
        of = "" if self._total is None else f" of {self._size(self._total)}"
        left = ""
        if self._total is not None and rate > 0:
            left = f", {(self._total - self._done) / rate / 60:.1f} min left"
        unit = "" if self._unit == "B" else f" {self._unit}"
        return f"{self._what}: {self._size(self._done)}{of}{unit}, {self._size(rate)}/s{left}"

    def _size(self, value: float) -> str:
        if self._unit == "B":
            return tqdm.format_sizeof(value, "B")
        return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
