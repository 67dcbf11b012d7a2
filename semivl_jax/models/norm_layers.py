"""Batch and group normalisation of maps, as the published networks have them.

In and out: float maps B×H×W×C of any value range, same dtype out (`dtype` for batch norm). Parameters and
statistics are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

Initializer = Callable[..., Array]

GROUP_SIZE = 16
"""Channels that a group norm normalises together (docs/semivl.md 3: C/16 groups)."""
EPSILON = 1e-5
MOMENTUM = 0.1
"""Weight of the new batch in running statistics."""


class BatchNorm(nn.Module):
    """Batch normalisation with torch's bookkeeping (docs/semivl.md 3, conv features).

    `train`: normalise with the statistics of this batch (under jit: of the global batch) and update the
    running ones in "batch_stats", with the unbiased variance. Otherwise the running statistics are used.
    """

    scale_init: Initializer = nn.initializers.ones
    epsilon: float = EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Normalise. One single value per channel has no variance: ValueError when training."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        wide = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            count = x.size // channels
            if count == 1:
                raise ValueError(
                    f"batch norm {'/'.join(self.path)} sees one value per channel (shape {x.shape}): "
                    "train with a batch of at least 2 images"
                )
            mean, var = jnp.mean(wide, (0, 1, 2)), jnp.var(wide, (0, 1, 2))
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value = (1 - MOMENTUM) * running_mean.value + MOMENTUM * mean
                running_var.value = (1 - MOMENTUM) * running_var.value + MOMENTUM * unbiased
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        out = (wide - mean[None, None, None, :]) * factor[None, None, None, :]
        return (out + bias[None, None, None, :]).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_norm(
    x: Float[Array, "b h w c"], scale: Float32[Array, " c"], bias: Float32[Array, " c"], relu: bool
) -> Float[Array, "b h w c"]:
    """Group normalisation in groups of `GROUP_SIZE` channels, followed with `relu` by ReLU.

    Statistics are float32 and computed from means per channel, so that maps are never reshaped; the backward
    pass keeps only x.
    """
    mean, deviation = _group_statistics(x)
    factor, bias = scale[None, None, None, :] / deviation, bias[None, None, None, :]
    return _normalized(x, mean, factor, bias, relu).astype(x.dtype)


def _group_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of the groups, for each channel: b×1×1×c."""
    wide = x.astype(jnp.float32)
    mean = _group_mean(jnp.mean(wide, (1, 2), keepdims=True))
    # Not E[x²] − E[x]², which would lose digits.
    variance = _group_mean(jnp.mean(jnp.square(wide - mean), (1, 2), keepdims=True))
    return mean, jnp.sqrt(variance + EPSILON)


def _group_mean(of_channels: Float32[Array, "b 1 1 c"]) -> Float32[Array, "b 1 1 c"]:
    b, _, _, channels = of_channels.shape
    groups = of_channels.reshape(b, 1, 1, -1, GROUP_SIZE)
    mean = jnp.broadcast_to(jnp.mean(groups, -1, keepdims=True), groups.shape)
    return mean.reshape(b, 1, 1, channels)


def _normalized(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    out = (x.astype(jnp.float32) - mean) * factor + bias
    return nn.relu(out) if relu else out


def _group_norm_forward(
    x: Array, scale: Array, bias: Array, relu: bool
) -> tuple[Array, tuple[Array, Array, Array]]:
    return group_norm(x, scale, bias, relu), (x, scale, bias)


def _group_norm_backward(
    relu: bool, saved: tuple[Array, Array, Array], out: Array
) -> tuple[Array, Array, Array]:
    x, scale, bias = saved
    scale, bias = scale[None, None, None, :], bias[None, None, None, :]
    mean, deviation = _group_statistics(x)
    out = out.astype(jnp.float32)
    if relu:
        out = jnp.where(_normalized(x, mean, scale / deviation, bias, False) > 0, out, 0.0)
    unit = (x.astype(jnp.float32) - mean) / deviation
    of_bias = jnp.sum(out, (1, 2), keepdims=True)
    of_scale = jnp.sum(out * unit, (1, 2), keepdims=True)
    pixels = x.shape[1] * x.shape[2]
    shift, slope = _group_mean(scale * of_bias / pixels), _group_mean(scale * of_scale / pixels)
    of_x = (scale * out - shift - unit * slope) / deviation
    return of_x.astype(x.dtype), jnp.sum(of_scale, (0, 1, 2)), jnp.sum(of_bias, (0, 1, 2))


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class GroupNorm(nn.Module):
    """`group_norm` with Linen's parameters."""

    relu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalise. ValueError unless the channels are a multiple of `GROUP_SIZE`."""
        channels = x.shape[-1]
        if channels % GROUP_SIZE:
            raise ValueError(
                f"group norm {'/'.join(self.path)} has groups of {GROUP_SIZE} channels, which {channels} "
                "are not: choose a multiple"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return group_norm(x, jnp.asarray(scale), jnp.asarray(bias), self.relu)
