"""The teacher: which weights make pseudo-labels, and the running average of the student.

Source: METHOD 4.2 and 5 (EMA); decay min(1 − 1/(i+1), ceiling) so that the average starts at the student.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, UInt32

from semivl_jax.types import Key, PyTree


def ema_decay(step: Int[Array, ""], *, ceiling: float) -> Float[Array, ""]:
    """Share of the old average kept after step i = 0, 1, …: 0, 1/2, 2/3, … up to `ceiling`."""
    return jnp.minimum(1.0 - 1.0 / (jnp.asarray(step, jnp.float32) + 1.0), ceiling)


def ema_update(average: PyTree, student: PyTree, decay: Float[Array, ""], *, key: Key) -> PyTree:
    """decay × average + (1 − decay) × student, leaf by leaf, in the average's dtype.

    A bfloat16 average is rounded up or down at random, with the probabilities that make the expectation
    exact: neighbouring values differ by 1/256 to 1/128, an average with decay 0.996 moves by 1/250 of its
    distance from the student, so that rounded to the nearest value it would hardly ever move. `key` draws.
    """
    leaves, tree = jax.tree.flatten(average)
    seeds = jax.random.bits(key, (max(len(leaves), 1),), jnp.uint32)
    mixed = []
    for seed, old, value in zip(seeds, leaves, tree.flatten_up_to(student), strict=False):
        exact = decay * old.astype(jnp.float32) + (1.0 - decay) * value.astype(jnp.float32)
        if old.dtype == jnp.bfloat16:
            exact = _rounded_at_random(seed, exact)
        mixed.append(exact.astype(old.dtype))
    return tree.unflatten(mixed)


def _rounded_at_random(seed: UInt32[Array, ""], x: Float32[Array, "*s"]) -> Float32[Array, "*s"]:
    """Values that bfloat16 can hold: one of the two around x, whose expectation is x."""
    # bfloat16 is the upper half of float32. What is added to the lower half carries into the upper one
    # as often as the lower half is large.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + (_scrambled(jax.lax.iota(jnp.uint32, x.size).reshape(x.shape) ^ seed) >> 16)
    return jax.lax.bitcast_convert_type((bits >> 16) << 16, jnp.float32)


def _scrambled(x: UInt32[Array, "*s"]) -> UInt32[Array, "*s"]:
    """MurmurHash3's last step: a few operations where JAX's generators are minutes of compilation, leaf by
    leaf; good enough for rounding, and the same however x is sharded.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
