"""One number that every process of a run hears from all of them, without waiting for the devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


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
