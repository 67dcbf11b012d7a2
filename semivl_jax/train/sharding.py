"""The device mesh and where arrays live on it.

One axis, `data`: batches are split over it, everything else is replicated. The same code serves one CPU
and many accelerators.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (of all processes), or the given ones, along the data axis."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(batch: int, mesh: Mesh) -> None:
    """Every device gets the same number of images.

    Raises:
      ValueError: the global batch is not a multiple of the number of devices.
    """
    if batch % mesh.size:
        below = batch - batch % mesh.size
        remedy = f"{below} or {below + mesh.size}" if below else f"{mesh.size}"
        raise ValueError(
            f"batch = {batch} cannot be split over {mesh.size} devices; use {remedy}, "
            "or fewer devices"
        )
