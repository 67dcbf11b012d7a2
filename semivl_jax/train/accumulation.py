"""A batch in parts that are computed one after another.

In: trees of arrays [b, ...]. Out: the same as [parts, b / parts, ...]. Every device keeps its own images:
it gives an equal share of them to every part, so nothing moves between devices. What mixes images of the
whole batch (the reversed batch as partner, what losses divide by) is done before splitting.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from semivl_jax.models.mesh_axes import BATCH
from semivl_jax.train import sharding
from semivl_jax.train.noise import Noise
from semivl_jax.types import PyTree


def split(tree: PyTree, parts: int) -> PyTree:
    """[b, ...] to [parts, b / parts, ...]."""
    shards = _shards()

    def one(leaf: jax.Array) -> jax.Array:
        rest = leaf.shape[1:]
        pieces = leaf.reshape(shards, parts, -1, *rest).swapaxes(0, 1)
        return _placed(pieces.reshape(parts, -1, *rest), PartitionSpec(None, BATCH))

    return jax.tree.map(one, tree)


def join(tree: PyTree) -> PyTree:
    """The inverse of `split`."""
    shards = _shards()

    def one(leaf: jax.Array) -> jax.Array:
        parts, _, *rest = leaf.shape
        pieces = leaf.reshape(parts, shards, -1, *rest).swapaxes(0, 1)
        return _placed(pieces.reshape(-1, *rest), PartitionSpec(BATCH))

    return jax.tree.map(one, tree)


def split_noise(noise: Noise, parts: int) -> Noise:
    """`split` of what a step draws; the masks are those of x and, behind them, of w."""
    if noise.masks is None:
        return split(noise, parts)

    def both(mask: jax.Array) -> jax.Array:
        halves = jnp.split(mask, 2)
        return jnp.concatenate([split(half, parts) for half in halves], axis=1)

    masks = jax.tree.map(both, noise.masks)
    return split(noise.replace(masks=None), parts).replace(masks=masks)


def _shards() -> int:
    return sharding.batch_shards(jax.sharding.get_abstract_mesh())


def _placed(leaf: jax.Array, place: PartitionSpec) -> jax.Array:
    return leaf if _shards() == 1 else jax.lax.with_sharding_constraint(leaf, place)
