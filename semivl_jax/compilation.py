"""Compiled programs: made before the first step with their cost in the log, and kept on disk.

A kept program compiles once per machine. The one that takes seconds to read, the training step, is read
in the background as soon as a run knows its configuration, and used if tracing leads to the same program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import pickle
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.stages import Compiled, Lowered, Wrapped

from semivl_jax import host_memory
from semivl_jax.types import PyTree

FOLDER = "~/.cache/semivl_jax/xla"
"""Where `compilation_cache` of configs/base.py points."""

_LOG = logging.getLogger(__name__)
_GIB = 2**30
_WORTHWHILE_S = 1.0  # what was compiled faster is not kept


def keep(folder: str) -> None:
    """Reads and writes compiled programs in a folder; an empty text keeps none."""
    if not folder:
        return
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTHWHILE_S)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A program on disk: which one it is, and what `serialize_executable` made of it."""

    digest: str
    content: tuple[bytes, Any, Any]


class ReadAhead:
    """The program that a name stood for the last time, being read from the moment this object is made.

    The name says no more than where to look. Whether the program is the right one is decided by the text
    that tracing leads to, in which every operation, shape, place and constant stands; so a wrong name, a
    damaged file or a changed source costs the time of compiling and nothing else.
    """

    def __init__(self, folder: str, name: str, devices: Sequence[jax.Device]) -> None:
        """`folder` is that of `keep`, and trusted as JAX's own cache there is: both hold code to run.

        An empty text keeps nothing. `devices` are those of the program's mesh, in its order. Where several
        processes compute together nothing is read ahead.
        """
        self._path: Path | None = None
        self._reading: Future[tuple[str, Compiled] | None] | None = None
        if not folder or jax.process_count() > 1:
            return
        key = hashlib.sha256(f"{name}\n{_compiler(devices)}".encode()).hexdigest()
        self._path = Path(folder).expanduser() / "ahead" / key[:32]
        if self._path.exists():
            pool = ThreadPoolExecutor(1, "read-ahead")
            self._reading = pool.submit(_read, self._path, tuple(devices))
            pool.shutdown(wait=False)

    def program(self, lowered: Lowered) -> Compiled | None:
        """Waits for what is being read and returns it if `lowered` would be compiled to the same."""
        read = self._reading.result() if self._reading else None
        self._reading = None
        if read is None or read[0] != _digest(lowered):
            return None
        trees = lowered.in_tree, lowered.out_tree
        return read[1] if (read[1].in_tree, read[1].out_tree) == trees else None

    def write(self, lowered: Lowered, program: Compiled) -> None:
        """Leaves a program for the next start; where that cannot be, the next start compiles."""
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            kept = _Kept(_digest(lowered), serialize_executable.serialize(program))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(zlib.compress(pickle.dumps(kept), 1))
            temporary.replace(self._path)
        except (
            Exception
        ) as error:  # backends refuse in many ways, as disks do; nothing depends on it
            _LOG.info("%s is not kept for the next start: %s", self._path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()


def _read(path: Path, devices: Sequence[jax.Device]) -> tuple[str, Compiled] | None:
    try:
        kept: _Kept = pickle.loads(zlib.decompress(path.read_bytes()))
        program = serialize_executable.deserialize_and_load(
            *kept.content, backend=devices[0].client, execution_devices=devices
        )
    except Exception as error:  # a damaged file fails in many ways, and compiling mends all of them
        _LOG.info("%s cannot be read and is compiled again: %s", path, error)
        return None
    host_memory.give_back()
    return kept.digest, program


def _digest(lowered: Lowered) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def _compiler(devices: Sequence[jax.Device]) -> str:
    """What beside its text decides to what a program is compiled: versions, devices, settings."""
    return repr(
        (
            jax.__version__,
            jaxlib.__version__,
            devices[0].client.platform_version,
            [(device.id, device.device_kind) for device in devices],
            _instructions() if devices[0].platform == "cpu" else "",
            os.environ.get("XLA_FLAGS"),
            os.environ.get("LIBTPU_INIT_ARGS"),
            sorted((key, str(value)) for key, value in jax.config.values.items()),
        )
    )


def _instructions() -> str:
    """The instruction sets of the processor; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def ahead(function: Wrapped, *args: PyTree, kept: ReadAhead | None = None) -> tuple[Compiled, str]:
    """The program for arguments of these shapes, dtypes and places, and one line about it.

    `kept` may have read it already, and gets it for the next start. The line says how long tracing and
    compiling took, the floating-point operations as the compiler counts them, and what each device needs:
    arguments, temporaries and the program itself. What a backend does not tell is left out.
    """
    start = time.monotonic()
    lowered = function.lower(*args)
    traced = time.monotonic()
    compiled = kept.program(lowered) if kept else None
    how = "compiled or read" if compiled is None else "read"
    if compiled is None:
        compiled = lowered.compile()
        if kept and time.monotonic() - traced > _WORTHWHILE_S:
            kept.write(lowered, compiled)
    facts = [f"traced in {traced - start:.1f} s, {how} in {time.monotonic() - traced:.1f} s more"]
    flops = (compiled.cost_analysis() or {}).get("flops", 0)
    if flops > 0:
        facts.append(f"{flops / 1e9:,.4g} GFLOP")
    memory = compiled.memory_analysis()
    if memory is not None:
        size = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes
        )
        facts.append(
            f"{size / _GIB:.2f} GiB per device, {memory.temp_size_in_bytes / _GIB:.2f} of them temporary"
        )
    return compiled, "; ".join(facts)
