"""Functions with a special form for one platform.

The form is chosen when a program is lowered, so that a CPU can compile for a TPU. Only the arguments are kept
for the backward pass, whatever a form computes on its way.
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
        """Those of all arguments; the last array given is the gradient of the value."""


@dataclasses.dataclass(frozen=True)
class Derived(Form):
    """A function whose gradients JAX derives."""

    function: Callable[..., Array]

    def __call__(self, *args: Array) -> Array:
        """The value."""
        return self.function(*args)

    def gradients(self, *args: Array) -> tuple[Array, ...]:
        """Those of all arguments."""
        *given, out = args
        return jax.vjp(self.function, *given)[1](out)


class Recomputed(Derived):
    """The same for functions with large intermediate values: the backward pass recomputes them."""

    def gradients(self, *args: Array) -> tuple[Array, ...]:
        """Those of all arguments."""
        # Without the barrier XLA would find that it has computed the same before and keep the values.
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
