"""The teacher: which weights make pseudo-labels, and the running average of the student.

Source: METHOD 4.2 and 5 (EMA); decay min(1 − 1/(i+1), ceiling) so that the average starts at the student.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

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
    new = tree.flatten_up_to(student)
    mixed = []
    for number, (old, value) in enumerate(zip(leaves, new, strict=True)):
        exact = decay * old.astype(jnp.float32) + (1.0 - decay) * value.astype(jnp.float32)
        if old.dtype == jnp.bfloat16:
            exact = _rounded_at_random(jax.random.fold_in(key, number), exact)
        mixed.append(exact.astype(old.dtype))
    return tree.unflatten(mixed)


def _rounded_at_random(key: Key, x: Float32[Array, "*s"]) -> Float32[Array, "*s"]:
    """Values that bfloat16 can hold: one of the two around x, whose expectation is x."""
    # bfloat16 is the upper half of float32. What is added to the lower half carries into the upper one
    # as often as the lower half is large.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + (jax.random.bits(key, x.shape, jnp.uint32) & 0xFFFF)
    return jax.lax.bitcast_convert_type((bits >> 16) << 16, jnp.float32)
