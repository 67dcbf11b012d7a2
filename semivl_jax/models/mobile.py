"""Light convolutional networks: EfficientNet-Lite0 and MobileNetV2, of inverted residual blocks.

In: images B×H×W×3, normalised with the ImageNet statistics. Out: `Features` with the maps of the chosen
stages, the first at a quarter of the resolution. Parameters live in "params", running statistics of the
batch norms in "batch_stats".

Source: MobileNetV2 (arXiv 1801.04381); EfficientNet (arXiv 1905.11946) without squeeze-and-excitation and
with ReLU6, as published under the name EfficientNet-Lite.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models import conv, image_normalization
from semivl_jax.models.norm_layers import EPSILON, BatchNorm
from semivl_jax.types import Features

TF_EPSILON = 1e-3
"""Epsilon of batch norms of networks trained with TensorFlow."""


class Stage(NamedTuple):
    """Blocks of one width: `stride` of the first, `expansion` of the channels inside each."""

    kernel_size: int
    blocks: int
    channels: int
    stride: int
    expansion: int = 6


EFFICIENTNET_LITE0: dict[str, Any] = {
    "stages": (
        Stage(3, 1, 16, 1, 1),
        Stage(3, 2, 24, 2),
        Stage(5, 2, 40, 2),
        Stage(3, 3, 80, 2),
        Stage(5, 3, 112, 1),
        Stage(5, 4, 192, 2),
        Stage(3, 1, 320, 1),
    )
}
MOBILENET_V2: dict[str, Any] = {
    "stages": (
        Stage(3, 1, 16, 1, 1),
        Stage(3, 2, 24, 2),
        Stage(3, 3, 32, 2),
        Stage(3, 4, 64, 2),
        Stage(3, 3, 96, 1),
        Stage(3, 3, 160, 2),
        Stage(3, 1, 320, 1),
    )
}

PYRAMID: dict[str, Any] = {"out_indices": (1, 2, 4, 6), "output_stride": 32}
"""The last maps at a quarter, an eighth, a 16th and a 32nd of the resolution."""


class SquareConv(nn.Module):
    """Convolution with `features` kernels, or one per channel.

    With `same` it is padded as by TensorFlow, otherwise symmetrically as by torch.
    """

    features: int
    kernel_size: int
    stride: int
    dilation: int
    depthwise: bool
    same: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b _ _ {self.features}"]:
        """Convolve."""
        size, inputs = self.kernel_size, 1 if self.depthwise else x.shape[-1]
        fan_out = size**2 * (1 if self.depthwise else self.features)
        init = nn.initializers.normal(math.sqrt(2 / fan_out))
        kernel = self.param("kernel", init, (size, size, inputs, self.features))
        x, kernel = x.astype(self.dtype), jnp.asarray(kernel, self.dtype)
        if size == 1:
            return conv.convolve(x, kernel)
        margin, reach = self.dilation * (size // 2), self.dilation * (size - 1) + 1
        padding = ((margin, margin), (margin, margin))
        if self.same:
            strides = (self.stride, self.stride)
            padding = jax.lax.padtype_to_pads(x.shape[1:3], (reach, reach), strides, "SAME")
            padding = tuple(map(tuple, padding))
        if self.depthwise:
            return conv.depthwise(
                x, kernel, stride=self.stride, dilation=self.dilation, padding=padding
            )
        return conv.convolve(x, kernel, stride=self.stride, padding=padding)


class ConvNorm6(nn.Module):
    """Convolution without bias, batch norm, and ReLU6 unless `relu` is off.

    `tf`: padding and epsilon of TensorFlow.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    relu: bool = True
    tf: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w i"], *, train: bool
    ) -> Float[Array, "b _ _ {self.features}"]:
        """Apply all three."""
        x = SquareConv(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            depthwise=self.depthwise,
            same=self.tf,
            dtype=self.dtype,
            name="conv",
        )(x)
        epsilon = TF_EPSILON if self.tf else EPSILON
        x = BatchNorm(epsilon=epsilon, dtype=self.dtype, name="norm")(x, train=train)
        return nn.relu6(x) if self.relu else x


class InvertedResidual(nn.Module):
    """Pointwise to `expansion` times the channels, depthwise, pointwise to `channels`.

    The input is added where it has the shape of the result.
    """

    kernel_size: int
    channels: int
    expansion: int
    stride: int = 1
    dilation: int = 1
    tf: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x c"], *, train: bool
    ) -> Float[Array, "b _ _ {self.channels}"]:
        """Apply the block."""
        wide = self.expansion * x.shape[-1]
        options = {"tf": self.tf, "dtype": self.dtype}
        out = x
        if self.expansion > 1:
            out = ConvNorm6(wide, **options, name="expand")(out, train=train)
        out = ConvNorm6(
            wide,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            depthwise=True,
            **options,
            name="depthwise",
        )(out, train=train)
        out = ConvNorm6(self.channels, relu=False, **options, name="project")(out, train=train)
        return out + x if out.shape == x.shape else out


class MobileNet(nn.Module):
    """The encoder.

    stages          of the network
    tf              trained with TensorFlow: its padding and epsilon; images are normalised as for
                    EfficientNet-Lite there
    output_stride   pixels per pixel of the last map: from there on strides become dilations. The first
                    block of such a stage still has the dilation of the stage before.
    out_indices     stages whose maps are returned, ascending
    head_channels   of the pointwise layer before pooling; 0: none
    num_classes     with a head: `Features.pooled` are logits of so many classes
    """

    via_square = False  # as of `VisionTransformer`
    padding_patch = None

    stages: tuple[Stage, ...]
    stem_channels: int = 32
    tf: bool = False
    output_stride: int = 16
    out_indices: tuple[int, ...] = (1, 6)
    head_channels: int = 0
    num_classes: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode; `train` uses (and updates) batch statistics."""
        options = {"tf": self.tf, "dtype": self.dtype}
        x = image_normalization.efficientnet_lite(image) if self.tf else image
        stem = ConvNorm6(self.stem_channels, kernel_size=3, stride=2, **options, name="stem")
        x = stem(x, train=train)
        maps, reached, dilation = [], 2, 1
        for i, stage in enumerate(self.stages):
            stride, before = stage.stride, dilation
            if stride > 1 and reached == self.output_stride:
                stride, dilation = 1, stage.stride * dilation
            reached *= stride
            for j in range(stage.blocks):
                x = InvertedResidual(
                    stage.kernel_size,
                    stage.channels,
                    stage.expansion,
                    stride=stride if j == 0 else 1,
                    dilation=before if j == 0 else dilation,
                    **options,
                    name=f"stage_{i}_block_{j}",
                )(x, train=train)
            maps.append(x)
        features = Features(maps=tuple(maps[i] for i in self.out_indices))
        if self.head_channels:
            x = ConvNorm6(self.head_channels, **options, name="head")(x, train=train)
            pooled = jnp.mean(x.astype(jnp.float32), (1, 2))
            if self.num_classes:
                pooled = nn.Dense(self.num_classes, name="classifier")(pooled)
            features = features.replace(pooled=pooled)
        return features
