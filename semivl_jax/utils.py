"""Shared helpers: atomic writes, ordered threads, progress, command lines, memory.

Progress goes to standard error: a bar on a terminal, else (a pipe, a file, TERM=dumb, or NO_COLOR is set) a
line every half minute.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")

CACHE = "~/.cache/semivl_jax"
"""Default folders: prepared data sets, converted weights, text embeddings, compiled programs."""
DATA_DIRECTORY = f"{CACHE}/data"
WEIGHTS_DIRECTORY = f"{CACHE}/weights"
TEXT_CACHE = f"{CACHE}/text"
COMPILATION_CACHE = f"{CACHE}/xla"

LINE_INTERVAL = 30.0
"""Seconds between two progress lines where no bar can be drawn."""


_FAULTS = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or raise the quota",
    errno.EFBIG: "raise the largest size of a file (ulimit -f)",
    errno.EROFS: "mount the file system writable",
    errno.EACCES: "give this user the permission",
    errno.EPERM: "give this user the permission",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount the network folder again",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
    errno.ENOMEM: "free some memory",
}
"""Remedies of what the system, not the user, did wrong, by error number."""


class SystemFault(OSError):
    """Disk, memory, permission or a process failed; the same command goes on when that is mended."""

    exit_code = 3


def fault_in(error: BaseException, path: Path | str | None = None) -> SystemFault | None:
    """The fault of the system that an error or one of its causes tells of, with `path`; None without one.

    Libraries in C++ raise other errors with the system's text in their messages.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SystemFault):
            return cause
        for number, remedy in _FAULTS.items():
            reason = os.strerror(number)
            if getattr(cause, "errno", None) == number or reason in str(cause):
                name = path or getattr(cause, "filename", None) or "a file"
                text = f"{name}: {reason}; {remedy} and repeat the same command"
                return SystemFault(text)
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the system in the block into a `SystemFault` that names the path."""
    try:
        yield
    except OSError as error:
        fault = fault_in(error, path)
        if fault is None:
            raise
        raise fault from error


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with ~ and ~USER written out.

    Raises:
      ValueError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"the path {str(path)!r} begins with the name of a user who does not exist; write ~/… or the "
            "whole path"
        ) from error


def as_file_name(text: str) -> str:
    """The text as a name of a file or folder; characters unfit for one become dashes."""
    return re.sub(r"[^\w.=+]+", "-", text).strip("-")


def default_workdir(config_flag: str) -> Path:
    """runs/<file>[-<argument>] for a --config flag."""
    path, _, argument = config_flag.partition(":")
    return Path("runs") / as_file_name(Path(path).stem + (f"-{argument}" if argument else ""))


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` if the block ends without an error.

    A reader sees the old file, or the new one, never a part. Missing parent folders are created.
    """
    # Not with the name in it, which may already be as long as a file system allows.
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, also if the machine loses power."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields a new temporary folder beside `folder`, which replaces it if the block ends without an error.

    A reader sees the old files, or the new ones, never a mixture. What a killed process left is removed.
    """
    # Names that nobody else gives: `photos.old` may be the user's.
    temporary, old = (
        folder.with_name(f".{folder.name}.semivl_jax.{name}") for name in ("new", "old")
    )
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for remains in (temporary, old):
        shutil.rmtree(remains, ignore_errors=True)
    with writing(folder):
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None
) -> Iterator[R]:
    """`map` in threads: results in the order of the items, at most two items per worker in flight.

    An error of `function` is raised when its result is due; work that has not begun is then cancelled.
    """
    workers = workers or min(16, os.cpu_count() or 1)
    pending: collections.deque[Future[R]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def positive(text: str) -> int:
    """A positive number of the command line: the `type` of an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; give 1 or more")
    return value


def use_huge_pages() -> None:
    """Restarts the running command with huge pages for large allocations; to be called first.

    A training step on a CPU allocates gigabytes; huge pages save a tenth of its time (docs/performance.md).
    Does nothing where GLIBC_TUNABLES is set, or where the system decides about huge pages by itself.
    """
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or not sys.orig_argv or not mode.exists():
        return
    if "[madvise]" in mode.read_text(encoding="utf8"):
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def trim_memory() -> None:
    """Returns freed memory to the system: after compiling, more than a gigabyte."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def on_terminal() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not plain


class Progress:
    """Counts `update(n)` up to `total` (None: not known) of a `unit`; a context manager.

    Args:
      what: the work, in a word or two.
      unit: the plural of what is counted; "B" for bytes, which are written as kB, MB, GB.
      initial: what was done before.
      show: False for processes that print nothing.
    """

    def __init__(
        self, what: str, *, total: int | None, unit: str, initial: int = 0, show: bool = True
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._initial = initial
        self._began = self._printed = time.monotonic()
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
        """Adds to the count."""
        self._done += number
        if self._bar is not None:
            self._bar.update(number)
        elif self._lines and time.monotonic() - self._printed >= LINE_INTERVAL:
            self._printed = time.monotonic()
            print(self._line(self._printed - self._began), file=sys.stderr, flush=True)

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


def run_command(command: Callable[[], int], *, stopped: str = "stopped") -> int:
    """Returns the exit code of a command: 2 after a ValueError or OSError, 3 after a fault of the system, 130
    after Ctrl-C.

    The error is printed on one line, `stopped` instead of it after Ctrl-C.
    """
    try:
        return command()
    except (ValueError, OSError) as error:
        fault = fault_in(error) if isinstance(error, OSError) else None
        print(f"error: {' '.join(str(fault or error).split())}", file=sys.stderr)
        return fault.exit_code if fault else 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Options of `python -m MODULE`, written out in full; mistakes end with exit code 2.

    Args:
      module: dotted name of the module.
      doc: its docstring: what the command does, examples, exit codes; shown by `--help`.
    """

    def __init__(self, module: str, doc: str | None) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=(doc or "").rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One sentence instead of the whole usage."""
        print(f"error: {message} (--help explains all options)", file=sys.stderr)
        sys.exit(2)
