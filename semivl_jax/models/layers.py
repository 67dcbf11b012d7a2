"""Convolutions, norms and attention that the decoders and the convolutional encoder share.

In and out: float maps B×H×W×C (tokens B×N×C for attention) of any value range. Parameters are float32;
`dtype` is the precision of the arithmetic, statistics of norms and softmax are always float32.

Freshly made layers are drawn as torch draws them (METHOD 3.11): weights and biases of convolutions and
linear layers uniform within ±1/√fan_in. Linen's own layers cannot do that for biases, whose
initialiser never learns the fan-in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

Initializer = Callable[..., Array]
Norm = Literal["group", "batch"]

GROUP_SIZE = 16
"""Channels that a group norm normalises together (METHOD 3: C/16 groups)."""


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


class Dense(nn.Module):
    """Linear layer over the last axis, with bias."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b {self.features}"]:
        """Apply the layer."""
        init = uniform(x.shape[-1] ** -0.5)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = jnp.asarray(self.param("bias", init, (self.features,)), self.dtype)
        out = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return out + bias.reshape((1,) * (out.ndim - 1) + (-1,))


class Conv(nn.Module):
    """Square convolution, padded so that stride 1 keeps the size.

    Several inputs stand for their concatenation over channels, which is never made: each is convolved
    with its share of the kernel and the results are added. So an input that copies have in common is
    convolved once: one of b images is added to every one of the b·n (n fastest) of the first input,
    and, for pointwise kernels, one of 1×1 pixels is added everywhere.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    kernel_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Float[Array, "_ _ _ _"]) -> Float[Array, "bn y x {self.features}"]:
        """Convolve; the first input gives the output's batch and size.

        Raises ValueError for a single pixel to be spread by a kernel that is not pointwise.
        """
        channels = [x.shape[-1] for x in inputs]
        shape = (self.kernel_size, self.kernel_size, sum(channels), self.features)
        init = uniform((self.kernel_size**2 * sum(channels)) ** -0.5)
        kernel = jnp.asarray(self.param("kernel", self.kernel_init or init, shape), self.dtype)
        out, start = None, 0
        for x, width in zip(inputs, channels, strict=True):
            if self.kernel_size > 1 and x.shape[1:3] != inputs[0].shape[1:3]:
                raise ValueError(
                    f"inputs of {inputs[0].shape[1:3]} and {x.shape[1:3]} pixels do not share a "
                    f"kernel of size {self.kernel_size}: resize the second"
                )
            part = self._convolve(x.astype(self.dtype), kernel[:, :, start : start + width])
            out, start = part if out is None else _add_shared(out, part), start + width
        if self.use_bias:
            bias = jnp.asarray(self.param("bias", init, (self.features,)), self.dtype)
            out = out + bias[None, None, None, :]
        return out

    def _convolve(self, x: Array, kernel: Array) -> Array:
        # Taps further out than the map is long only ever meet padding. On small maps that is most of
        # a dilated kernel, so they are left out: the same numbers for a part of the work.
        centre = self.kernel_size // 2
        reach = [min(centre, (size - 1) // self.dilation) for size in x.shape[1:3]]
        rows, cols = (slice(centre - r, centre + r + 1) for r in reach)
        return jax.lax.conv_general_dilated(
            x,
            kernel[rows, cols],
            window_strides=(self.stride, self.stride),
            padding=[(r * self.dilation, r * self.dilation) for r in reach],
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _add_shared(out: Array, part: Array) -> Array:
    """Add a map of b images (of full size or 1×1) to one of b·n images."""
    copies = out.reshape(part.shape[0], -1, *out.shape[1:])
    return (copies + part[:, None]).reshape(out.shape)


class Upsample(nn.Module):
    """Transposed convolution with bias whose kernel is as large as its stride, `factor`.

    Windows do not overlap: every pixel becomes its own block by one matrix product. The kernel
    (factor, factor, in, out) is indexed by the position within the block.
    """

    features: int
    factor: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x c"]
    ) -> Float[Array, "b {self.factor}*y {self.factor}*x {self.features}"]:
        """Multiply the size."""
        b, rows, cols, channels = x.shape
        f = self.factor
        # torch takes its fan-in from the *output* side
        init = uniform((f * f * self.features) ** -0.5)
        kernel = self.param("kernel", init, (f, f, channels, self.features))
        bias = jnp.asarray(self.param("bias", init, (self.features,)), self.dtype)
        blocks = jnp.einsum("byxc,ijco->byixjo", x.astype(self.dtype), kernel.astype(self.dtype))
        return blocks.reshape(b, f * rows, f * cols, self.features) + bias[None, None, None, :]


class BatchNorm(nn.Module):
    """Batch normalisation with torch's bookkeeping (METHOD 3, conv features).

    `train`: normalise with the statistics of this batch and move the running ones ("batch_stats",
    which must be mutable) towards them; their variance takes the unbiased estimate. Under jit, "this
    batch" is the global batch, however it is sharded. Otherwise the running statistics are used.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
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
                step, unbiased = self.momentum, var * (count / (count - 1))
                running_mean.value = (1 - step) * running_mean.value + step * mean
                running_var.value = (1 - step) * running_var.value + step * unbiased
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        out = (wide - mean[None, None, None, :]) * factor[None, None, None, :]
        return (out + bias[None, None, None, :]).astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias, group or batch norm, and ReLU unless `relu` is off.

    `scale_init` starts the norm's scale. Several inputs as for `Conv`.
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
        self, *inputs: Float[Array, "_ _ _ _"], train: bool = False
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
        if self.norm == "batch":
            x = BatchNorm(scale_init=self.scale_init, dtype=self.dtype, name="norm")(x, train=train)
        else:
            x = nn.GroupNorm(
                num_groups=None,
                group_size=GROUP_SIZE,
                epsilon=1e-5,
                scale_init=self.scale_init,
                use_fast_variance=False,  # E[x²] − E[x]² would lose digits
                dtype=self.dtype,
                name="norm",
            )(x)
        return nn.relu(x) if self.relu else x


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: dilated branches and the image mean, joined by a pointwise layer.

    Dilation 1 means a pointwise branch, any other a 3×3 one. The mean of the map goes through its own
    pointwise layer and is spread over the map again.
    """

    features: int
    norm: Norm
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x _"], *, train: bool = False
    ) -> Float[Array, "b y x {self.features}"]:
        """Apply all branches and join them."""

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


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens of each sequence, with biases.

    Named and shaped as Linen's, drawn as torch's: the three input projections Xavier-uniform as the
    one fused (3c, c) matrix they are there, biases zero (METHOD 3.11).
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Attend; c must be a multiple of `num_heads` (ValueError)."""
        channels = x.shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide {channels} channels: choose a divisor"
            )
        split = (self.num_heads, channels // self.num_heads)
        fused = uniform((6 / (4 * channels)) ** 0.5)
        query, key, value = (
            nn.DenseGeneral(split, kernel_init=fused, dtype=self.dtype, name=name)(x)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return nn.DenseGeneral(
            channels,
            axis=(-2, -1),
            kernel_init=uniform(channels**-0.5),
            dtype=self.dtype,
            name="out",
        )(mixed)
