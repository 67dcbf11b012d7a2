"""One writer per working directory.

A process that trains holds a lock on the file `lock` of its working directory, which states host, process
and time; one that evaluates holds it if no other does. The system releases the lock of a process that ended
in any way, so that a later one takes over what a killed run left. Of several processes of a run, the first
one holds it.

A bucket has no locks: there the holder writes its file again and again, and who finds one that stays the same
takes over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from semivl_jax import buckets
from semivl_jax.train import distributed

FILE = "lock"
RENEWED = 20.0
EXPIRES = 90.0
"""Seconds between two writes of a lock in a bucket, and without one until the holder counts as ended."""


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


@contextlib.contextmanager
def lease(folder: buckets.Folder) -> Iterator[Lease | None]:
    """Holds the lock of a folder in a bucket; None in processes other than the first.

    Raises:
      ValueError: another process holds it; the message says which one.
    """
    held = distributed.main_first(lambda: Lease(folder) if distributed.is_main() else None)
    try:
        yield held
    finally:
        if held is not None:
            held.release()


class Lease:
    """The lock of a folder in a bucket, renewed by a thread."""

    def __init__(self, folder: buckets.Folder) -> None:
        self._folder, self._own, self._lost = folder, "", False
        self._released = threading.Event()
        _wait_for_end(folder)
        self._write()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """ValueError if another process has taken over, for example because this one was suspended."""
        if self._lost:
            raise ValueError(
                f"{self._folder.url} is now used by {_named(_parsed(self._folder.read(FILE)))}; this process "
                "stops, what it did since its last checkpoint is lost"
            )

    def release(self) -> None:
        """Ends the lock."""
        self._released.set()
        self._thread.join()
        if not self._lost:
            self._folder.delete([FILE])

    def _renew(self) -> None:
        while not self._released.wait(RENEWED):
            with contextlib.suppress(OSError):  # tried again
                self._lost = self._folder.read(FILE) != self._own.encode()
                if self._lost:
                    return
                self._write()

    def _write(self) -> None:
        self._own = json.dumps({**_here(), "renewed": time.time()})
        self._folder.write(FILE, self._own.encode())


def _wait_for_end(folder: buckets.Folder) -> None:
    """Returns when nobody holds the lock; ValueError as soon as its holder renews it."""
    first = folder.read(FILE)
    if first is None or _ended(_parsed(first)):
        return
    name = _named(_parsed(first))
    print(
        f"{folder.url} was in use by {name}; waiting up to {EXPIRES:.0f} s for a sign of life",
        flush=True,
    )
    end = time.monotonic() + EXPIRES
    while time.monotonic() < end:
        time.sleep(min(RENEWED, EXPIRES) / 10)
        now = folder.read(FILE)
        if now is None:
            return
        if now != first:
            raise _in_use(folder.url, _parsed(now), "")
    print(f"warning: {name} gave none; this process goes on in its place", flush=True)


def _acquire(workdir: Path, *, required: bool) -> int | None:
    """The open file that holds the lock, or None if another process has it and it is not required."""
    path = workdir / FILE
    while True:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            if _is_at(descriptor, path):  # else the process before has just removed the file
                _take_over(descriptor, path)
                return descriptor
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, ValueError) and not required:
                return None
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path.parent, _read(descriptor), "") from None
    except OSError:  # a file system without locks: the text decides
        holder = _read(descriptor)
        if holder and not _ended(holder):
            raise _in_use(path.parent, holder, f"; if it no longer runs, delete {path}") from None


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
    return _parsed(os.pread(descriptor, 4096, 0))


def _parsed(content: bytes | None) -> dict[str, str | int]:
    """The holder that the file states; empty where it states none."""
    try:
        holder = json.loads(content or b"")
        return holder if _here().keys() <= holder.keys() else {}
    except (ValueError, AttributeError):
        return {}


def _ended(holder: dict[str, str | int]) -> bool:
    if not holder or holder["host"] != _here()["host"]:
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


def _in_use(folder: Path | str, holder: dict[str, str | int], remedy: str) -> ValueError:
    return ValueError(
        f"{folder} is in use by {_named(holder)}; wait for it, stop it, or choose another "
        f"--workdir{remedy}"
    )
