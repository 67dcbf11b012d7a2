"""Compiled programs: made before the first step, and kept on disk.

A kept program compiles once per machine. Those that take seconds to read, of the training step, are read in
the background as soon as a run knows its configuration. They are used without tracing if nothing has changed
that tracing depends on, or else if tracing leads to the same program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
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

from semivl_jax import host_memory, sources
from semivl_jax.types import PyTree

FOLDER = "~/.cache/semivl_jax/xla"
"""Where `compilation_cache` of configs/base.py points."""

STEP = ("gradients", "update")
"""The programs of a training step (train/programs.py)."""

_LOG = logging.getLogger(__name__)
_WORTHWHILE_S = 1.0  # what was compiled faster is not kept
_UNREADABLE = "%s cannot be read and is compiled again: %s"


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
    """A program on disk: which one it is, and what `serialize_executable` made of it (bytes packed)."""

    digest: str
    executable: bytes
    trees: tuple[Any, Any]


class ReadAhead:
    """The program that a name stood for the last time, being read from the moment this object is made.

    The name says no more than where to look. Whether the program is the right one is decided by what it was
    made from: the source of every module, its arguments, and what else its maker names. Where one of
    them is not the same, the text decides that tracing leads to, in which every operation, shape, place and
    constant stands. So a wrong name, a damaged file or a changed source costs the time of compiling and
    nothing else.
    """

    def __init__(self, folder: str, name: str, devices: Sequence[jax.Device]) -> None:
        """`folder` is that of `keep`, and trusted as JAX's own cache there is: both hold code to run.

        An empty text keeps nothing. `devices` are those of the program's mesh, in its order. Where several
        processes compute together nothing is read ahead.
        """
        self._path: Path | None = None
        self._reading: Future[_Read | None] | None = None
        if not folder or jax.process_count() > 1:
            return
        key = hashlib.sha256(f"{name}\n{_compiler(devices)}".encode()).hexdigest()
        self._path = Path(folder).expanduser() / "ahead" / key[:32]
        kept = _open(self._path) if self._path.exists() else None
        if kept is not None:
            pool = ThreadPoolExecutor(1, "read-ahead")
            self._reading = pool.submit(_read, kept, self._path, tuple(devices))
            pool.shutdown(wait=False)

    def untraced(self, origin: str) -> Compiled | None:
        """Waits for what is being read and returns it if it was made from the same source and `origin`."""
        read = self._reading.result() if self._reading else None
        if read is None or read.origin != origin:
            return None
        moved = sources.moved(read.sources)
        if moved:
            _LOG.info("the step is traced again: %s is another file than before", moved)
        return None if moved else read.program

    def program(self, lowered: Lowered) -> Compiled | None:
        """Waits for what is being read and returns it if `lowered` would be compiled to the same."""
        read = self._reading.result() if self._reading else None
        self._reading = None  # what does not fit takes no memory during the training
        if read is None or read.digest != _digest(lowered):
            return None
        trees = lowered.in_tree, lowered.out_tree
        return read.program if (read.program.in_tree, read.program.out_tree) == trees else None

    def write(self, lowered: Lowered, program: Compiled) -> None:
        """Leaves a program for the next start; where that cannot be, the next start compiles."""
        if self._path is None:
            return
        try:
            executable, *trees = serialize_executable.serialize(program)
            kept = _Kept(_digest(lowered), zlib.compress(executable, 1), tuple(trees))
            content = pickle.dumps(kept)
        except Exception as error:  # backends refuse in many ways; nothing depends on it
            _LOG.info("%s is not kept for the next start: %s", self._path, error)
            return
        _replace(self._path, content)

    def write_origin(self, lowered: Lowered, origin: str) -> None:
        """Leaves what the program was made from; where that cannot be told, the next start traces."""
        manifest = sources.loaded() if self._path is not None else None
        if self._path is None or manifest is None:
            return
        made_from = {"digest": _digest(lowered), "origin": origin, "sources": manifest}
        _replace(self._path.with_suffix(".json"), json.dumps(made_from).encode())


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        _LOG.info("%s is not kept for the next start: %s", path, error)
        with contextlib.suppress(OSError):
            temporary.unlink()


@dataclasses.dataclass(frozen=True)
class _Read:
    """A program read from disk; `origin` is empty where its sources have changed since, or are not known."""

    digest: str
    program: Compiled
    origin: str
    sources: sources.Manifest


def _open(path: Path) -> _Kept | None:
    """The file's content. Called by the main thread, because this imports the types in the trees.

    Two threads that import modules which import each other may find them half done.
    """
    try:
        kept = pickle.loads(path.read_bytes())
        if not isinstance(kept, _Kept):
            raise ValueError(f"it holds {type(kept).__name__}")
    except Exception as error:  # a damaged file fails in many ways, and compiling mends all of them
        _LOG.info(_UNREADABLE, path, error)
        return None
    return kept


def _read(kept: _Kept, path: Path, devices: Sequence[jax.Device]) -> _Read | None:
    try:
        origin, manifest = _origin_kept(path.with_suffix(".json"), kept.digest)
        program = serialize_executable.deserialize_and_load(
            zlib.decompress(kept.executable),
            *kept.trees,
            backend=devices[0].client,
            execution_devices=devices,
        )
    except Exception as error:
        _LOG.info(_UNREADABLE, path, error)
        return None
    host_memory.give_back()
    return _Read(kept.digest, program, origin, manifest)


def _origin_kept(path: Path, digest: str) -> tuple[str, sources.Manifest]:
    """What the program with this text was made from; empty where that cannot be said any more."""
    if not path.exists():
        return "", {}
    try:
        made_from = json.loads(path.read_bytes())
        manifest, origin = made_from["sources"], made_from["origin"]
        changed = sources.changed(manifest)
        fits = made_from["digest"] == digest and not changed
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        _LOG.info("%s cannot be read: %s", path, error)
        return "", {}
    if changed:
        _LOG.info("the step is traced again: %s has changed", changed)
    return (origin, manifest) if fits else ("", {})


def _origin(built_from: Any, args: Sequence[PyTree]) -> str:
    """Digest of what decides about a program beside its source; of arguments all but their values."""
    leaves, tree = jax.tree.flatten(args)
    described = [(jax.typeof(leaf), getattr(leaf, "sharding", None)) for leaf in leaves]
    return hashlib.sha256(repr((built_from, tree, described)).encode()).hexdigest()


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


def ahead(
    function: Wrapped, *args: PyTree, kept: ReadAhead | None = None, built_from: Any = None
) -> tuple[Compiled, str]:
    """The program for arguments of these shapes, dtypes and places, and where its time went.

    `kept` may have read it already, and gets it for the next start. `built_from`, whose `repr` says all, is
    what decided about the function beside the name of `kept`; without it it is always traced.
    """
    start = time.monotonic()
    origin = _origin(built_from, args) if built_from is not None else ""
    compiled = kept.untraced(origin) if kept and origin else None
    if compiled is not None:
        return compiled, f"read in {time.monotonic() - start:.1f} s"
    lowered = function.lower(*args)
    traced = time.monotonic()
    compiled = kept.program(lowered) if kept else None
    how = "compiled or read" if compiled is None else "read"
    worthwhile = compiled is not None
    if compiled is None:
        compiled = lowered.compile()
        worthwhile = time.monotonic() - traced > _WORTHWHILE_S
        if kept and worthwhile:
            kept.write(lowered, compiled)
    seconds = f"traced in {traced - start:.1f} s, {how} in {time.monotonic() - traced:.1f} s more"
    if kept and origin and worthwhile:
        kept.write_origin(lowered, origin)
    return compiled, seconds


def read_step(folder: str, name: str, devices: Sequence[jax.Device]) -> dict[str, ReadAhead]:
    """The programs of a training step, each being read by itself; arguments as of `ReadAhead`."""
    return {part: ReadAhead(folder, f"{name}\n{part}", devices) for part in STEP}
