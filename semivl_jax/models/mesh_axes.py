"""The axes of a device mesh, and what a model asks of them while it is traced.

`train/sharding.py` makes the mesh and sets it as JAX's current one; without a current mesh nothing here
does anything, so models run anywhere.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

DATA, FSDP, CLASSES = "data", "fsdp", "classes"
"""Batches are split over the first two; parameters at rest over the second; over the third what a decoder
computes per class."""

BATCH = (DATA, FSDP)
"""Axes that share the images of a batch."""

AXES = (*BATCH, CLASSES)


def over_classes(x: Shaped[Array, "bk *rest"]) -> Shaped[Array, "bk *rest"]:
    """Asks that images times classes (the class fastest) be split over all three axes.

    Does nothing unless the current mesh has more than one device along `classes`.
    """
    if _size(CLASSES) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(AXES))


def _size(axis: str) -> int:
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)
