"""Compiled programs kept on disk, so that the same program compiles once per machine."""

from __future__ import annotations

from pathlib import Path

import jax

FOLDER = "~/.cache/semivl_jax/xla"
"""Where `compilation_cache` of configs/base.py points."""


def keep(folder: str) -> None:
    """Reads and writes compiled programs in a folder; an empty text keeps none."""
    if not folder:
        return
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
