"""One writer per working directory.

A process that trains holds a lock on the file `lock` of its working directory, which states host, process
and time; one that evaluates holds it if no other does. The system releases the lock of a process that ended
in any way, so that a later one takes over what a killed run left. Of several processes of a run, the first
one holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from semivl_jax.train import distributed

FILE = "lock"


@contextlib.contextmanager
def one_writer(workdir: Path, *, required: bool = True) -> Iterator[bool]:
    """Holds the lock of a working directory, which is created; one that is left empty is removed again.

    Yields whether this process holds it: not if `required` is false and another process does.

    Raises:
      ValueError: another process holds it; the message says which one.
    """
    descriptor = distributed.main_first(
        lambda: _acquire(workdir, required=required) if distributed.is_main() else None
    )
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            (workdir / FILE).unlink(missing_ok=True)
            os.close(descriptor)
            with contextlib.suppress(OSError):
                workdir.rmdir()


def _acquire(workdir: Path, *, required: bool) -> int | None:
    """The open file that holds the lock, or None if another process has it and it is not required."""
    path = workdir / FILE
    while True:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            # Else the process before has just removed the file.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                _take_over(descriptor, path)
                return descriptor
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, ValueError) and not required:
                return None
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path, _read(descriptor), "") from None
    except OSError:  # a file system without locks: the text decides
        holder = _read(descriptor)
        if holder and not _ended(holder):
            raise _in_use(path, holder, f"; if it no longer runs, delete {path}") from None


def _take_over(descriptor: int, path: Path) -> None:
    holder = _read(descriptor)
    if holder.get("host", _here()["host"]) != _here()["host"]:
        # Some shared file systems lock within one host only.
        print(
            f"warning: {path.parent} was in use by {_named(holder)}, which did not end by itself; make sure "
            "that it no longer runs",
            flush=True,
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_here()).encode(), 0)


def _here() -> dict[str, str | int]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": now}


def _read(descriptor: int) -> dict[str, str | int]:
    """The holder that the file states; empty where it states none."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return holder if _here().keys() <= holder.keys() else {}
    except (ValueError, AttributeError):
        return {}


def _ended(holder: dict[str, str | int]) -> bool:
    if holder["host"] != _here()["host"]:
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(holder["process"]) == os.getpid()


def _named(holder: dict[str, str | int]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['process']} on {holder['host']} since {holder['since']}"


def _in_use(path: Path, holder: dict[str, str | int], remedy: str) -> ValueError:
    return ValueError(
        f"{path.parent} is in use by {_named(holder)}; wait for it, stop it, or choose another "
        f"--workdir{remedy}"
    )
