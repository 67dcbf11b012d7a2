"""Compiled programs on disk, so that a later run does not compile them again; damaged ones are removed."""

from __future__ import annotations

import atexit
import contextlib
import warnings
import zlib
from pathlib import Path

from semivl_jax import caches, utils


def use_cache(folder: str) -> None:
    """Lets JAX keep compiled programs in a folder; an empty text keeps none.

    Damaged programs are removed first: a damaged folder costs time only, like one that cannot be written.
    """
    if not folder:
        return
    import jax  # late, so that --help and a misspelt option answer at once

    path = utils.user_path(folder)
    reason = caches.unwritable(path)
    try:
        check(path)
    except OSError as error:
        reason = reason or error.strerror or str(error)
    if reason:
        consequence = "programs are compiled in every run"
        caches.warn(path, reason, "compilation_cache", consequence)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    atexit.register(_note_new_programs, path)


def check(folder: Path) -> None:
    """Removes compiled programs that are damaged.

    JAX does not write them atomically, never replaces a damaged one, and compresses them without a checksum
    where the package zstandard is installed: a flipped byte would change the program. So each has its CRC-32
    in a file beside it; one without, of a process that was killed, must decompress.
    """
    for _ in utils.ordered_map(_check, list(folder.glob("*-cache"))):
        pass


def _check(path: Path) -> None:
    note = path.with_name(f"{path.name}.crc32")
    try:
        program = path.read_bytes()
        checksum = f"{zlib.crc32(program):08x}"
        if note.exists():
            whole = note.read_bytes() == checksum.encode()
        elif whole := _decompresses(program):
            utils.write_text(note, checksum)
        if not whole:
            path.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # another process removed it


def _decompresses(program: bytes) -> bool:
    with contextlib.suppress(zlib.error):
        return bool(zlib.decompress(program))
    try:
        import zstandard  # JAX uses it where it is installed
    except ImportError:
        return False
    with contextlib.suppress(zstandard.ZstdError):
        return bool(zstandard.ZstdDecompressor().decompress(program))
    return False


def _note_new_programs(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.glob("*-cache"):
            if not path.with_name(f"{path.name}.crc32").exists():
                _check(path)  # without threads, at the end of the process
