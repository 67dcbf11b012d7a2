"""The device mesh and the shardings of arrays on it.

Three axes (`models/mesh_axes.py`): images of a batch are split over `data` and `fsdp`. All parameters, the
optimiser state and EMA are stored split over `fsdp` by `RULES` and gathered within a step. `classes`
splits what the decoder computes per class. An axis of size 1 has no effect.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from semivl_jax.models.mesh_axes import AXES, BATCH, FSDP
from semivl_jax.types import PyTree

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class PartitionRule:
    """For leaves whose whole path matches: the first of these dimensions that divides is split."""

    pattern: str
    dimensions: tuple[int, ...]


RULES = (
    PartitionRule(r"(.*/)?(query|key|value)/kernel", (0, -1)),  # [in, heads, channels of a head]
    PartitionRule(r"(.*/)?kernel", (-1, -2)),  # [..., in, out]
    PartitionRule(r"(.*/)?pos_embedding", (-1,)),
    # Biases, norms, tokens, statistics, counters: small, whole on every device
    PartitionRule(r".*", ()),
)
"""How leaves are split over `fsdp`; the first rule that matches applies.

A path is "/"-joined and starts at the state, such as `ema_params/backbone/embedding/kernel`.
"""


def mesh_shape(
    *, devices: int, data: int = -1, fsdp: int = 1, classes: int = 1
) -> tuple[int, int, int]:
    """Sizes of the axes for so many devices; `data` = -1 takes what the others leave.

    Raises:
      ValueError: a size below 1, or the sizes do not multiply to the number of devices.
    """
    for name, size in (("fsdp", fsdp), ("classes", classes), ("data", data)):
        if size < 1 and not (name == "data" and size == -1):
            raise ValueError(
                f"mesh.{name} = {size} must be 1 or more" + " or -1" * (name == "data")
            )
    others = fsdp * classes
    fits = devices % others == 0 if data == -1 else data * others == devices
    if not fits:
        remedy = (
            f"choose mesh.fsdp and mesh.classes whose product divides {devices}"
            if devices % others
            else f"set mesh.data = -1 or {devices // others}"
        )
        raise ValueError(
            f"mesh.data = {data}, mesh.fsdp = {fsdp} and mesh.classes = {classes} do not multiply to the "
            f"{devices} devices of this run; {remedy}"
        )
    return devices // others, fsdp, classes


def make_mesh(
    devices: Sequence[jax.Device] | None = None,
    *,
    data: int = -1,
    fsdp: int = 1,
    classes: int = 1,
) -> Mesh:
    """All devices (of all processes), or the given ones; sizes as of `mesh_shape`.

    Devices of one process are adjacent, so that a process holds the contiguous rows of a batch that it loads.
    """
    chosen = jax.devices() if devices is None else devices
    chosen = sorted(chosen, key=lambda device: device.process_index)
    shape = mesh_shape(devices=len(chosen), data=data, fsdp=fsdp, classes=classes)
    return Mesh(np.asarray(chosen).reshape(shape), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices that share a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many pieces a batch is split; 1 for an empty mesh."""
    sizes = dict(mesh.shape)
    return math.prod(sizes.get(axis, 1) for axis in BATCH)


def check_batch(batch: int, mesh: Mesh, *, accumulation: int = 1) -> None:
    """Checks that a batch can be split evenly over devices and the parts of an accumulated step.

    Raises:
      ValueError: the global batch is not a multiple of devices times parts, or the `classes` axis spans
        more than one process.
    """
    shards = batch_shards(mesh)
    pieces = shards * accumulation
    if batch % pieces:
        below = batch - batch % pieces
        remedy = f"{below} or {below + pieces}" if below else f"{pieces}"
        parts = f" in {accumulation} parts (accumulation)" if accumulation > 1 else ""
        fewer = "fewer parts" if accumulation > 1 else "fewer devices"
        raise ValueError(
            f"batch = {batch} cannot be split over {shards} devices{parts}; use {remedy}, or {fewer}"
        )
    for row in mesh.devices.reshape(-1, mesh.devices.shape[-1]):
        if len({device.process_index for device in row}) > 1:
            local = sum(d.process_index == row[0].process_index for d in mesh.devices.flat)
            raise ValueError(
                f"mesh.classes = {len(row)} spans several processes, which load different images; "
                f"choose a divisor of the {local} devices of a process"
            )


def shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings of the leaves of a state or of `Frozen`, by `RULES`."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(path_name(path), leaf.shape, fsdp=mesh.shape[FSDP]))

    return jax.tree_util.tree_map_with_path(place, tree)


def spec(path: str, shape: tuple[int, ...], *, fsdp: int) -> PartitionSpec:
    """How a leaf is split over `fsdp` devices; whole if no dimension of its rule divides."""
    rule = next(rule for rule in RULES if re.fullmatch(rule.pattern, path))
    for dimension in rule.dimensions:
        if fsdp > 1 and shape[dimension] % fsdp == 0:
            axes: list[str | None] = [None] * len(shape)
            axes[dimension] = FSDP
            return PartitionSpec(*axes)
    return PartitionSpec()


def path_name(path: Sequence[Any]) -> str:
    """Names and numbers of a path of `jax.tree_util`, joined with "/"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def abstract(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of the leaves."""

    def describe(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(describe, tree, shardings(mesh, tree))


def bytes_at_rest(mesh: Mesh, tree: PyTree) -> int:
    """Memory on each device for the leaves of a tree of (abstract) arrays."""

    def size(leaf: Any, where: NamedSharding) -> int:
        return math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, tree, shardings(mesh, tree))))


def put(mesh: Mesh, tree: PyTree) -> PyTree:
    """Host arrays, the same in every process, placed by `shardings`."""

    def place(leaf: Any, where: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(place, tree, shardings(mesh, tree))


def local(mesh: Mesh, tree: PyTree) -> PyTree:
    """Whole leaves on devices of this process; all processes must call this together."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))
    # One program, with none running before or after it: overlapping collectives may run in another order
    # in another process, which is a deadlock.
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    whole = jax.block_until_ready(gather(jax.block_until_ready(tree)))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def on_mesh(function: Callable[Arguments, Result], mesh: Mesh) -> Callable[Arguments, Result]:
    """The function, traced with this mesh as the current one."""

    @functools.wraps(function)
    def traced(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **named)

    return traced


def all_gather(tree: PyTree) -> PyTree:
    """Inside a step: whole leaves on every device."""
    if _fsdp() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


def reshard(tree: PyTree) -> PyTree:
    """Inside a step: leaves (gradients) split by `RULES`."""
    fsdp = _fsdp()
    if fsdp == 1:
        return tree

    def place(path: tuple[Any, ...], leaf: Array) -> Array:
        split = spec(path_name(path), leaf.shape, fsdp=fsdp)
        return jax.lax.with_sharding_constraint(leaf, split)

    return jax.tree_util.tree_map_with_path(place, tree)


def _current() -> AbstractMesh:
    return jax.sharding.get_abstract_mesh()


def _fsdp() -> int:
    return dict(_current().shape).get(FSDP, 1)


def split_batch(tree: PyTree, parts: int) -> PyTree:
    """Inside a step: leaves [b, ...] to [parts, b / parts, ...].

    Images stay on their devices: each device gives every part an equal share of its own.
    """
    shards = batch_shards(_current())

    def one(leaf: Array) -> Array:
        rest = leaf.shape[1:]
        pieces = leaf.reshape(shards, parts, -1, *rest).swapaxes(0, 1)
        return _placed(pieces.reshape(parts, -1, *rest), PartitionSpec(None, BATCH))

    return jax.tree.map(one, tree)


def join_batch(tree: PyTree) -> PyTree:
    """The inverse of `split_batch`."""
    shards = batch_shards(_current())

    def one(leaf: Array) -> Array:
        parts, _, *rest = leaf.shape
        pieces = leaf.reshape(parts, shards, -1, *rest).swapaxes(0, 1)
        return _placed(pieces.reshape(-1, *rest), PartitionSpec(BATCH))

    return jax.tree.map(one, tree)


def _placed(leaf: Any, place: PartitionSpec) -> Any:
    if batch_shards(_current()) == 1:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, place)
