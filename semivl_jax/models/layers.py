"""Convolutions, norms and attention that the decoders and the convolutional encoder share.

In and out: float maps B×H×W×C (tokens B×N×C for attention) of any value range. Parameters are float32;
`dtype` is the precision of the arithmetic, statistics of norms and softmax are always float32.

Freshly made layers are drawn as torch draws them (METHOD 3.11): weights and biases of convolutions and
linear layers uniform within ±1/√fan_in. Linen's own layers cannot do that for biases, whose
initialiser never learns the fan-in.
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


@struct.dataclass
class Upsampled:
    """What `Upsample` makes of a map, before it is made: a 3×3 `Conv` needs only the small map.

    kernel  float32 (factor, factor, in, out), indexed by the position within a block
    """

    x: Float[Array, "b y x i"]
    kernel: Float32[Array, "f f i o"]
    bias: Float32[Array, " o"]

    @property
    def shape(self) -> tuple[Any, int, int, int]:
        """Of the large map; the number of images may be a symbol, in a program for export."""
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

    Several inputs stand for their concatenation over channels, which is never made: each is convolved
    with its share of the kernel and the results are added. So an input that copies have in common is
    convolved once: one of b images is added to every one of the b·n (n fastest) of the first input,
    and, for pointwise kernels, one of 1×1 pixels is added everywhere. For kernels of size 3, stride and
    dilation 1, an input may be `Upsampled`.
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
        """Convolve; the first input gives the output's batch and size.

        Raises ValueError for a single pixel to be spread by a kernel that is not pointwise.
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
        # The small ones first: what is shared by all images is added to what some of them share.
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
    # The barrier keeps XLA from joining the gradients' sums over images, here and in what `part` is the
    # sum of, to one sum over all images at once, which takes CPUs several times as long.
    part = jax.lax.optimization_barrier(part)
    copies = out.reshape(part.shape[0], -1, *out.shape[1:])
    return (copies + part[:, None]).reshape(out.shape)


class Upsample(nn.Module):
    """Transposed convolution with bias whose kernel is as large as its stride, `factor`.

    Windows do not overlap: every pixel becomes its own block.
    """

    features: int
    factor: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Upsampled:
        """The map with multiplied size, to be made by whoever reads it."""
        # torch takes its fan-in from the *output* side
        init = uniform((self.factor**2 * self.features) ** -0.5)
        shape = (self.factor, self.factor, x.shape[-1], self.features)
        kernel = jnp.asarray(self.param("kernel", init, shape))
        bias = jnp.asarray(self.param("bias", init, (self.features,)))
        return Upsampled(x.astype(self.dtype), kernel, bias)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float32[Array, " c"],
    bias: Float32[Array, " c"],
    epsilon: float,
    relu: bool,
) -> Float[Array, "b h w c"]:
    """Every image's groups of `GROUP_SIZE` channels normalised, scaled, shifted and, with `relu`, cut at 0.

    Statistics are float32 and made of sums per channel, so that maps never take another shape; the
    backward pass keeps nothing but x.
    """
    mean, deviation = _group_statistics(x, epsilon)
    factor, bias = scale[None, None, None, :] / deviation, bias[None, None, None, :]
    return _normalized(x, mean, factor, bias, relu).astype(x.dtype)


def _group_statistics(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Mean and standard deviation of the groups, for each channel: b×1×1×c."""
    wide = x.astype(jnp.float32)
    mean = _group_mean(jnp.mean(wide, (1, 2), keepdims=True))
    # Not E[x²] − E[x]², which would lose digits.
    variance = _group_mean(jnp.mean(jnp.square(wide - mean), (1, 2), keepdims=True))
    return mean, jnp.sqrt(variance + epsilon)


def _group_mean(of_channels: Float32[Array, "b 1 1 c"]) -> Float32[Array, "b 1 1 c"]:
    b, _, _, channels = of_channels.shape
    groups = of_channels.reshape(b, 1, 1, -1, GROUP_SIZE)
    mean = jnp.broadcast_to(jnp.mean(groups, -1, keepdims=True), groups.shape)
    return mean.reshape(b, 1, 1, channels)


def _normalized(x: Array, mean: Array, factor: Array, bias: Array, relu: bool) -> Array:
    out = (x.astype(jnp.float32) - mean) * factor + bias
    return nn.relu(out) if relu else out


def _group_norm_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, relu: bool
) -> tuple[Array, tuple[Array, Array, Array]]:
    return group_norm(x, scale, bias, epsilon, relu), (x, scale, bias)


def _group_norm_backward(
    epsilon: float, relu: bool, saved: tuple[Array, Array, Array], out: Array
) -> tuple[Array, Array, Array]:
    x, scale, bias = saved
    scale, bias = scale[None, None, None, :], bias[None, None, None, :]
    mean, deviation = _group_statistics(x, epsilon)
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
    """Group normalisation and, with `relu`, ReLU; parameters as Linen's, for `group_norm`."""

    epsilon: float = 1e-5
    relu: bool = False
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalise. ValueError for channels that are not whole groups."""
        channels = x.shape[-1]
        if channels % GROUP_SIZE:
            raise ValueError(
                f"group norm {'/'.join(self.path)} has groups of {GROUP_SIZE} channels, which {channels} "
                "are not: choose a multiple"
            )
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return group_norm(x, jnp.asarray(scale), jnp.asarray(bias), self.epsilon, self.relu)


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
            return GroupNorm(relu=self.relu, scale_init=self.scale_init, name="norm")(x)
        x = BatchNorm(scale_init=self.scale_init, dtype=self.dtype, name="norm")(x, train=train)
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
