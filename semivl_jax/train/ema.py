"""The running average of the student, whose weights make pseudo-labels.

Source: docs/semivl.md 4.2 and 5; decay min(1 − 1/(i+1), ceiling) so that the average starts at the student.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semivl_jax.types import PyTree


def ema_decay(step: Int[Array, ""], *, ceiling: float) -> Float[Array, ""]:
    """Share of the old average kept after step i = 0, 1, …: 0, 1/2, 2/3, … up to `ceiling`."""
    return jnp.minimum(1.0 - 1.0 / (jnp.asarray(step, jnp.float32) + 1.0), ceiling)


def ema_update(average: PyTree, student: PyTree, decay: Float[Array, ""]) -> PyTree:
    """decay × average + (1 − decay) × student, leaf by leaf."""
    return jax.tree.map(lambda old, value: decay * old + (1.0 - decay) * value, average, student)
