"""Several processes that train together: how they find each other, what one does before the others.

    python -m semivl_jax.main --config=… --coordinator_address=host0:1234 --num_processes=2 --process_id=0

On a Cloud TPU and inside of a SLURM step with several tasks nothing has to be said: JAX asks the machine.
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
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Joins the other processes of the run; to be called before anything is computed.

    Args:
      choice: where the three that follow are not given: `on` lets JAX find the others in the environment,
        `auto` does so on a Cloud TPU and in a SLURM step with several tasks, `off` does nothing.
      coordinator_address: HOST:PORT of process 0, free there and reachable from everywhere.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      timeout: seconds to wait for the others.
      environment: where SLURM and Cloud TPUs tell about themselves.

    Raises:
      ValueError: arguments that contradict each other, or the others do not answer.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value in (None, "")]
    if len(missing) == len(given):
        if choice == "on" or (choice == "auto" and expected(environment)):
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
            f"{num_processes} give every process another number of these"
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
    """Whether the environment says that this process is one of several, or may be.

    A SLURM job may have many tasks while a program started without srun is alone: only the step counts. JAX
    marks Cloud TPUs when it is imported, and asks their metadata for the other hosts.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    on_tpu = environment.get("TPU_ML_PLATFORM") == "JAX"
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    knows_hosts = hosts > 1 or "TPU_SKIP_MDS_QUERY" not in environment
    return (tasks.isdigit() and int(tasks) > 1) or (on_tpu and knows_hosts)


def _wait_for(address: str, timeout: int) -> None:
    """Until somebody listens there: JAX aborts the process where nobody does, without a sentence."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"--coordinator_address = {address}: nobody listened there for {timeout} s ({error}); "
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
            f"the processes of the run did not find each other ({named or 'asked the environment'}; "
            f"{reason}); start all of them within {timeout} s (--start_timeout), with the same address "
            "and count, or use --distributed=off for a run of one process"
        ) from error


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def has_peers() -> bool:
    """Whether others train with this process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def log_main(text: str) -> None:
    """Prints, once per run and not once per process."""
    if is_main():
        print(text, flush=True)


_meetings = itertools.count(1)  # a meeting's name is used once


def main_first(make: Callable[[], Result]) -> Result:
    """`make()` in process 0, and then in the others: for files that one makes and all read.

    However long it takes. ValueError in all of them where it fails in the first.
    """
    if jax.process_count() == 1:
        return make()
    result, error = None, None
    if is_main():
        try:
            result = make()
        except Exception as failure:
            error = failure
    barrier(f"process 0 has been first ({next(_meetings)})")
    failed = bool(multihost_utils.broadcast_one_to_all(np.int32(error is not None)))
    if error is not None:
        raise error
    if failed:
        raise ValueError("process 0 could not go on; its own message says why")
    return result if is_main() else make()


def all_sum(counts: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """Exact sum over all processes of counts that are 0 or more; every process must call it."""
    if jax.process_count() == 1:
        return counts
    # As pairs of 32-bit words: without x64, arrays of 64 bits would be cut on the way.
    words = np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)
    low, high = multihost_utils.process_allgather(words).astype(np.int64).sum(axis=0)
    return low + (high << 32)


def all_gather_json(value: Any) -> list[Any]:
    """The JSON value of every process, in their order, numbers exactly; every process must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.pad(text, (0, lengths.max() - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def barrier(place: str) -> None:
    """Waits until all processes are here, an hour at most; `place` is a name that no other meeting has.

    Without the devices: these give up after half a minute if one of them starts to exchange something and
    another does not, and compiling a program may take one process longer than that.
    """
    if has_peers():
        multihost.get_barrier_sync_fn()(key=place, timeout_ms=3_600_000)


def abort(code: int) -> None:
    """Ends a failed process at once where there are others.

    An orderly exit would wait for them, while they wait for this one; so they notice.
    """
    if has_peers():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Agreement:
    """The largest number that a process gave at the call before, the same in all processes.

    All must call it equally often, in the same order among other work that they do together. The answer
    comes one call late: asked for at once, it would hold the host up until the devices have finished what
    they were given.
    """

    def __init__(self) -> None:
        mesh = Mesh(np.asarray(jax.devices()), ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._waiting: jax.Array | None = None

    def __call__(self, number: int) -> int:
        """0 at the first call, then what the call before found."""
        own = np.full(jax.local_device_count(), number, np.int32)
        everyone = jax.make_array_from_process_local_data(self._split, own, (jax.device_count(),))
        before, self._waiting = self._waiting, self._largest(everyone)
        return 0 if before is None else int(before)
