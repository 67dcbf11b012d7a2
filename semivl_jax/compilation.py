"""Compiled programs: made before the first step with their cost in the log, and kept on disk.

A kept program compiles once per machine.
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
from jax.stages import Compiled, Wrapped

from semivl_jax.types import PyTree

FOLDER = "~/.cache/semivl_jax/xla"
"""Where `compilation_cache` of configs/base.py points."""

_GIB = 2**30


def keep(folder: str) -> None:
    """Reads and writes compiled programs in a folder; an empty text keeps none."""
    if not folder:
        return
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def ahead(function: Wrapped, *args: PyTree) -> tuple[Compiled, str]:
    """The program for arguments of these shapes, dtypes and places, and one line about it.

    The line says how long tracing and compiling took, the floating-point operations as the compiler counts
    them, and what each device needs: arguments, temporaries and the program itself. What a backend does not
    tell is left out.
    """
    start = time.monotonic()
    lowered = function.lower(*args)
    traced = time.monotonic()
    compiled = lowered.compile()
    facts = [
        f"traced in {traced - start:.1f} s, compiled or read in {time.monotonic() - traced:.1f} s"
    ]
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
