"""Runs the program as a user does: another process, the real command line.

Only that XLA compiles it quickly rather than well: what a test compiles runs a few times.
"""

import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = Path.home() / ".cache" / "semivl_jax" / "tests"
"""Compiled programs, which all processes of all test runs share; JAX_COMPILATION_CACHE_DIR names another."""


def compiled_quickly(devices: int, flags: str = "") -> dict[str, str]:
    """Variables for so many simulated CPU devices, without what takes XLA most of its time; `flags` stay.

    What was compiled before is read from `CACHE`.
    """
    flags += f" --xla_force_host_platform_device_count={devices}"
    # The newer emitter of fused operations starts anew for each of thousands of them. Later versions have no
    # other one, and end the process at a flag that they do not know.
    if metadata.version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false"
    return {
        "XLA_FLAGS": flags,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def environment(devices: int = 1) -> dict[str, str]:
    """Variables of a process with so many CPU devices."""
    return {**os.environ, **compiled_quickly(devices), "JAX_PLATFORMS": "cpu"}


def free_address() -> str:
    """HOST:PORT where nothing listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "semivl_jax.main", *arguments]


def run(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    """Waits for the end; output as text, errors and progress together in `stdout`."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
