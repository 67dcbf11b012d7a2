"""The axes of the device mesh, which `train/sharding.py` makes the current one, and a constraint on them."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

FSDP, CLASSES = "fsdp", "classes"
"""Axis over which parameters are sharded, and axis of what a decoder computes per class."""

BATCH = ("data", FSDP)
"""Axes over which a batch is split."""

AXES = (*BATCH, CLASSES)


def over_classes(x: Shaped[Array, "bk *rest"]) -> Shaped[Array, "bk *rest"]:
    """Shards images times classes (the class fastest) over all three axes.

    Does nothing unless the current mesh has more than one device along `classes`.
    """
    mesh = dict(jax.sharding.get_abstract_mesh().shape)
    if mesh.get(CLASSES, 1) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(AXES))
