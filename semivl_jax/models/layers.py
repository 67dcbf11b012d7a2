"""Convolutions and linear layers that the decoders and the residual networks share.

In and out: float maps B×H×W×C of any value range. Parameters are float32; `dtype` is the precision of the
arithmetic. Layers are initialised as in torch (docs/semivl.md 3.11): weights and biases of convolutions and
linear layers uniform within ±1/√fan_in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from semivl_jax.models import conv
from semivl_jax.models.norm_layers import BatchNorm, GroupNorm

Initializer = Callable[..., Array]
Norm = Literal["group", "batch"]


def uniform(bound: float) -> Initializer:
    """Initialiser: uniform within ±bound."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def l2_normalize(x: Float[Array, "... c"], *, eps: float = 1e-12) -> Float32[Array, "... c"]:
    """x / max(‖x‖, eps) over the last axis, in float32; at a zero vector the gradient is finite."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))


def dense(features: int, *, fan_in: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """Linear layer over the last axis of an input with `fan_in` channels."""
    init = uniform(fan_in**-0.5)
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)


@struct.dataclass
class Upsampled:
    """The result of `Upsample`, not computed yet: a 3×3 `Conv` needs only the small map x.

    kernel  float32 (factor, factor, in, out), indexed by the position within a block
    """

    x: Float[Array, "b y x i"]
    kernel: Float32[Array, "f f i o"]
    bias: Float32[Array, " o"]

    @property
    def shape(self) -> tuple[Any, int, int, int]:
        """Of the large map; the number of images may be symbolic (for export)."""
        (b, rows, cols, _), (factor, _, _, out) = self.x.shape, self.kernel.shape
        return b, factor * rows, factor * cols, out

    def pixels(self) -> Float[Array, "b _ _ o"]:
        """The large map, by one matrix product."""
        dtype = self.x.dtype
        blocks = jnp.einsum("byxc,ijco->byixjo", self.x, self.kernel.astype(dtype))
        return blocks.reshape(self.shape) + self.bias.astype(dtype)[None, None, None, :]

    def convolved(self, kernel: Float32[Array, "3 3 o p"]) -> list[Float[Array, "_ _ _ p"]]:
        """The 3×3 convolution of the large map in parts to be added, the second the same for all images.

        The large map is not made if the factor is 2.
        """
        dtype = self.x.dtype
        if self.kernel.shape[0] != 2:
            return [conv.convolve(self.pixels(), kernel.astype(dtype))]
        bias = conv.upsampled_constant(self.bias, kernel, size=self.shape[1:3])
        return [conv.upsampled(self.x, self.kernel, kernel), bias.astype(dtype)]


class Conv(nn.Module):
    """Square convolution, padded so that stride 1 keeps the size.

    Several inputs are treated as concatenated over channels: each is convolved with its part of the kernel
    and the results are added. An input of b images beside a first one of b·n (n fastest) is convolved once
    per image; for pointwise kernels an input of 1×1 pixels is broadcast.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    kernel_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, *inputs: Float[Array, "_ _ _ _"] | Upsampled
    ) -> Float[Array, "bn y x {self.features}"]:
        """Convolve; the output has the batch and size of the first input.

        ValueError for inputs of different sizes unless the kernel is pointwise.
        """
        channels = [x.shape[-1] for x in inputs]
        shape = (self.kernel_size, self.kernel_size, sum(channels), self.features)
        init = uniform((self.kernel_size**2 * sum(channels)) ** -0.5)
        kernel = jnp.asarray(self.param("kernel", self.kernel_init or init, shape))
        parts, start = [], 0
        for x, width in zip(inputs, channels, strict=True):
            if self.kernel_size > 1 and x.shape[1:3] != inputs[0].shape[1:3]:
                raise ValueError(
                    f"inputs of {inputs[0].shape[1:3]} and {x.shape[1:3]} pixels do not share a "
                    f"kernel of size {self.kernel_size}: resize the second"
                )
            parts += self._convolve(x, kernel[:, :, start : start + width])
            start += width
        if self.use_bias:
            bias = jnp.asarray(self.param("bias", init, (self.features,)), self.dtype)
            parts.append(bias[None, None, None, :])
        # From the smallest: what all images share is added to what some of them share.
        return functools.reduce(_add_shared, sorted(parts, key=lambda part: part.size))

    def _convolve(self, x: Array | Upsampled, kernel: Array) -> list[Array]:
        if isinstance(x, Upsampled):
            if (self.kernel_size, self.stride, self.dilation) == (3, 1, 1):
                return x.convolved(kernel)
            x = x.pixels()
        out = conv.convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            dilation=self.dilation,
        )
        return [out]


def _add_shared(part: Array, out: Array) -> Array:
    """Add a map of b images (of full size or 1×1) to one of b·n images."""
    # Without the barrier XLA joins the gradients' sums over images, here and inside `part`, to one sum, which
    # is several times slower on CPUs.
    part = jax.lax.optimization_barrier(part)
    copies = out.reshape(part.shape[0], -1, *out.shape[1:])
    return (copies + part[:, None]).reshape(out.shape)


class Upsample(nn.Module):
    """Transposed convolution with bias; kernel size and stride are `factor`, so windows do not overlap."""

    features: int
    factor: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Upsampled:
        """The map of multiplied size."""
        # torch takes its fan-in from the *output* side
        init = uniform((self.factor**2 * self.features) ** -0.5)
        shape = (self.factor, self.factor, x.shape[-1], self.features)
        kernel = jnp.asarray(self.param("kernel", init, shape))
        bias = jnp.asarray(self.param("bias", init, (self.features,)))
        return Upsampled(x.astype(self.dtype), kernel, bias)


class ConvNorm(nn.Module):
    """Convolution without bias (of inputs as for `Conv`), group or batch norm, and ReLU unless `relu` is off.

    `scale_init` is for batch norms.
    """

    features: int
    norm: Norm
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    relu: bool = True
    kernel_init: Initializer | None = None
    scale_init: Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, *inputs: Float[Array, "_ _ _ _"] | Upsampled, train: bool = False
    ) -> Float[Array, "bn y x {self.features}"]:
        """Apply all three; `train` matters to batch norms only."""
        x = Conv(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(*inputs)
        if self.norm == "group":
            return GroupNorm(self.relu, name="norm")(x)
        x = BatchNorm(scale_init=self.scale_init, dtype=self.dtype, name="norm")(x, train=train)
        return nn.relu(x) if self.relu else x


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: dilated branches and the image mean, joined by a pointwise layer.

    Dilation 1 means a pointwise branch, any other a 3×3 one.
    """

    features: int
    norm: Norm
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x _"], *, train: bool = False
    ) -> Float[Array, "b y x {self.features}"]:
        """Apply; `train` is for batch norms."""

        def layer(name: str, *inputs: Array, kernel_size: int = 1, dilation: int = 1) -> Array:
            return ConvNorm(
                self.features,
                norm=self.norm,
                kernel_size=kernel_size,
                dilation=dilation,
                dtype=self.dtype,
                name=name,
            )(*inputs, train=train)

        branches = [
            layer(f"branch_{i}", x, kernel_size=1 if rate == 1 else 3, dilation=rate)
            for i, rate in enumerate(self.dilations)
        ]
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        return layer("project", *branches, layer("pooled", mean))
