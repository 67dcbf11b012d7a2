"""Training with several processes: start, barriers and exchanges between them.

    python -m semivl_jax.main --config=… --coordinator_address=host0:1234 --num_processes=2 --process_id=0

On a Cloud TPU and in a SLURM step with several tasks no option is needed: JAX detects the processes.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64
from orbax.checkpoint import multihost

Choice = Literal["auto", "on", "off"]
Result = TypeVar("Result")


def start(
    choice: Choice = "auto",
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins the other processes of the run; to be called before any computation.

    Args:
      choice: without the next three: `on` lets JAX detect the other processes, `auto` does so on a Cloud TPU
        and in a SLURM step with several tasks, `off` does nothing.
      coordinator_address: HOST:PORT of process 0, with a free port.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: contradicting arguments, or the others do not connect in time.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value in (None, "")]
    if len(missing) == len(given):
        if choice == "on" or (choice == "auto" and expected(os.environ)):
            _join({}, timeout)
        return
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} must be given as well: {', '.join(given)} belong together"
        )
    if choice == "off":
        raise ValueError(
            "--distributed=off contradicts --coordinator_address; leave one of them out"
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id = {process_id} is outside 0 … {num_processes - 1}: with --num_processes = "
            f"{num_processes} give every process a different number of these"
        )
    if not re.fullmatch(r".+:\d+", coordinator_address):
        raise ValueError(
            f"--coordinator_address = {coordinator_address!r} has no port; write HOST:PORT, with a port "
            "that is free on the host of process 0"
        )
    if process_id == 0:
        print(
            f"waiting at {coordinator_address} for {num_processes - 1} other processes", flush=True
        )
    else:
        _wait_for(coordinator_address, timeout)
    _join({name.removeprefix("--"): value for name, value in given.items()}, timeout)


def expected(environment: Mapping[str, str]) -> bool:
    """Whether this process is, or may be, one of several according to the environment.

    In SLURM only the step counts: a program of a batch script without srun is a single process. JAX sets
    TPU_ML_PLATFORM on Cloud TPUs when it is imported, and reads the other hosts from their metadata.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    on_tpu = environment.get("TPU_ML_PLATFORM") == "JAX"
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    knows_hosts = hosts > 1 or "TPU_SKIP_MDS_QUERY" not in environment
    return (tasks.isdigit() and int(tasks) > 1) or (on_tpu and knows_hosts)


def _wait_for(address: str, timeout: int) -> None:
    """Waits until process 0 listens: without it JAX would abort this process without a Python error."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"--coordinator_address = {address}: nothing listened there for {timeout} s ({error}); "
                    "start process 0 on that host, or wait longer with --start_timeout"
                ) from error
        time.sleep(0.5)


def _join(arguments: dict[str, str | int], timeout: int) -> None:
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:  # JAX's own errors are RuntimeErrors
        reason = " ".join(str(error).split())
        named = ", ".join(f"--{name} = {value}" for name, value in arguments.items())
        raise ValueError(
            f"the processes of the run did not connect ({named or 'detected from the environment'}; "
            f"{reason}); start all of them within {timeout} s (--start_timeout), with the same address "
            "and count, or use --distributed=off for a run of one process"
        ) from error


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def has_peers() -> bool:
    """Whether the run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def log_main(text: str) -> None:
    """Prints in the first process only."""
    if is_main():
        print(text, flush=True)


_barriers = itertools.count(1)  # the name of a barrier is used once


def main_first(make: Callable[[], Result]) -> Result:
    """`make()` in process 0, and then in the others: for files that one writes and all read.

    Raises:
      ValueError: in all processes if it fails in the first.
    """
    if jax.process_count() == 1:
        return make()
    result, error = None, None
    if is_main():
        try:
            result = make()
        except Exception as failure:
            error = failure
    barrier(f"process 0 is done ({next(_barriers)})")
    failed = bool(multihost_utils.broadcast_one_to_all(np.int32(error is not None)))
    if error is not None:
        raise error
    if failed:
        raise ValueError("process 0 failed; see its own message")
    return result if is_main() else make()


def all_sum(counts: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """Exact sum of non-negative counts over all processes; every process must call it."""
    if jax.process_count() == 1:
        return counts
    # As pairs of 32-bit numbers: without x64, JAX truncates 64-bit arrays.
    halves = np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)
    low, high = multihost_utils.process_allgather(halves).astype(np.int64).sum(axis=0)
    return low + (high << 32)


def all_gather_json(value: Any) -> list[Any]:
    """The JSON values of all processes in their order, exactly; every process must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.pad(text, (0, lengths.max() - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def barrier(name: str) -> None:
    """Waits for all processes, an hour at most; every barrier needs a `name` of its own.

    It does not use the devices: their collectives fail if one process is half a minute late, and compiling
    may take longer than that.
    """
    if has_peers():
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=3_600_000)


def abort(code: int) -> None:
    """Ends a failed process at once if there are others: a normal exit would wait for them forever."""
    if has_peers():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Agreement:
    """The maximum over all processes of the numbers of the previous call.

    All must call it equally often, in the same order among other collectives. The result is one call late, so
    that the host does not wait for the devices.
    """

    def __init__(self) -> None:
        mesh = Mesh(np.asarray(jax.devices()), ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._previous: jax.Array | None = None

    def __call__(self, number: int) -> int:
        """0 at the first call, then the maximum of the previous call."""
        own = np.full(jax.local_device_count(), number, np.int32)
        numbers = jax.make_array_from_process_local_data(self._split, own, (jax.device_count(),))
        previous, self._previous = self._previous, self._largest(numbers)
        return 0 if previous is None else int(previous)
