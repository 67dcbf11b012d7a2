"""Functions with a special implementation for one platform.

It is chosen when a program is lowered, so that a CPU can compile for a TPU. Only the arguments are kept for
the backward pass.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array

Platform = Literal["cpu", "tpu"]


class Form(abc.ABC):
    """A function of arrays, and its gradients."""

    @abc.abstractmethod
    def __call__(self, *args: Array) -> Array:
        """The value."""

    @abc.abstractmethod
    def gradients(self, *args: Array) -> tuple[Array, ...]:
        """Gradients of all arguments but the last, which is the gradient of the value."""


@dataclasses.dataclass(frozen=True)
class Derived(Form):
    """A function whose gradients JAX derives."""

    function: Callable[..., Array]

    def __call__(self, *args: Array) -> Array:
        """The value."""
        return self.function(*args)

    def gradients(self, *args: Array) -> tuple[Array, ...]:
        """Gradients of all arguments but the last."""
        *given, out = args
        return jax.vjp(self.function, *given)[1](out)


class Recomputed(Derived):
    """A function whose intermediate values are large: the backward pass recomputes them."""

    def gradients(self, *args: Array) -> tuple[Array, ...]:
        """Gradients of all arguments but the last."""
        # Without the barrier XLA would eliminate the common subexpressions and keep the values.
        return super().gradients(*jax.lax.optimization_barrier(args))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def by_platform(platform: Platform, special: Form, default: Form, *args: Array) -> Array:
    """`special` of the arrays on this platform, `default` on all others.

    Both must give the same shape and dtype, and the same values up to rounding.
    """
    return jax.lax.platform_dependent(*args, **{platform: special}, default=default)


def _forward(
    platform: Platform, special: Form, default: Form, *args: Array
) -> tuple[Array, tuple[Array, ...]]:
    return by_platform(platform, special, default, *args), args


def _backward(
    platform: Platform, special: Form, default: Form, saved: tuple[Array, ...], out: Array
) -> tuple[Array, ...]:
    gradients = {platform: special.gradients}
    return jax.lax.platform_dependent(*saved, out, **gradients, default=default.gradients)


by_platform.defvjp(_forward, _backward)
