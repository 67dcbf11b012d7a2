"""Runs the program as a user does: another process, the real command line."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """One CPU device; compiled programs go to `cache`, so that later runs start quickly."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "semivl_jax.main", *arguments]


def run(*arguments: str, cache: Path, devices: int = 1) -> subprocess.CompletedProcess:
    """Waits for the end; output as text, errors and progress together in `stdout`."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(cache, devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
