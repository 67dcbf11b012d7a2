"""Residual networks with batch norm: an encoder of four stages, and one for fine detail.

In: images B×H×W×3, normalised with the ImageNet statistics. Out of `ResNet`: `Features` with the maps of
the chosen stages, the first at a quarter of the resolution, B×⌈H/4⌉×⌈W/4⌉×(4·channels, of basic blocks
channels). Out of `ResNetV1c`, which ends after its first stage (docs/semivl.md 3, conv features): that map
alone. Both have a stem of three 3×3 convolutions; networks of basic blocks, such as ResNet-18, one 7×7 as
torchvision and timm publish them. Parameters live in "params", running statistics of the batch norms in
"batch_stats".
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.layers import ConvNorm
from semivl_jax.types import Features

RESNET18 = {"blocks": (2, 2, 2, 2), "stem_channels": 64, "basic": True}

EXPANSION = 4
"""Output channels of a bottleneck block over its inner channels."""

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Stem(nn.Module):
    """Three 3×3 convolutions, the first with stride 2: half the resolution, `channels` channels."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], *, train: bool
    ) -> Float[Array, "b y x {self.channels}"]:
        """Apply the stem."""
        half = self.channels // 2
        for i, (width, stride) in enumerate([(half, 2), (half, 1), (self.channels, 1)]):
            x = ConvNorm(
                width,
                norm="batch",
                stride=stride,
                kernel_init=HE_NORMAL,
                dtype=self.dtype,
                name=f"conv{i + 1}",
            )(x, train=train)
        return x


class Bottleneck(nn.Module):
    """Residual block 1×1, 3×3 (with stride and dilation), 1×1 (to 4·channels).

    The shortcut is projected where it has another size or number of channels. With `zero_init` the last
    norm's scale starts at 0.
    """

    channels: int
    stride: int = 1
    dilation: int = 1
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x _"], *, train: bool) -> Float[Array, "b _ _ _"]:
        """Apply the block."""

        def layer(name: str, x: Array, width: int, **options: int | bool) -> Array:
            zero = name == "conv3" and self.zero_init
            return ConvNorm(
                width,
                norm="batch",
                kernel_init=HE_NORMAL,
                scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
                dtype=self.dtype,
                name=name,
                **options,
            )(x, train=train)

        wide = EXPANSION * self.channels
        out = layer("conv1", x, self.channels, kernel_size=1)
        out = layer("conv2", out, self.channels, stride=self.stride, dilation=self.dilation)
        out = layer("conv3", out, wide, kernel_size=1, relu=False)
        if x.shape[-1] != wide or self.stride != 1:
            x = layer("shortcut", x, wide, kernel_size=1, stride=self.stride, relu=False)
        return nn.relu(out + x)


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions, the first with stride and `first_dilation`."""

    channels: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x _"], *, train: bool
    ) -> Float[Array, "b _ _ {self.channels}"]:
        """Apply the block."""

        def layer(name: str, x: Array, **options: int | bool) -> Array:
            return ConvNorm(
                self.channels,
                norm="batch",
                kernel_init=HE_NORMAL,
                dtype=self.dtype,
                name=name,
                **options,
            )(x, train=train)

        out = layer("conv1", x, stride=self.stride, dilation=self.first_dilation)
        out = layer("conv2", out, dilation=self.dilation, relu=False)
        if x.shape[-1] != self.channels or self.stride != 1:
            x = layer("shortcut", x, kernel_size=1, stride=self.stride, relu=False)
        return nn.relu(out + x)


# Traced once for all blocks of equal options and shapes.
_SharedBottleneck = nn.jit(Bottleneck, static_argnames="train")
_SharedBasicBlock = nn.jit(BasicBlock, static_argnames="train")


class ResNet(nn.Module):
    """The encoder of the convolutional baseline; defaults are ResNet-101 as published (docs/semivl.md 8).

    blocks, channels   per stage: residual blocks, and inner channels of each
    dilated            per stage but the first: whether its stride becomes a dilation. The first block of
                       such a stage still has the dilation of the stage before.
    out_indices        stages whose maps are returned, ascending
    basic              basic blocks in place of bottlenecks, and a stem of one 7×7 convolution
    """

    via_square = False  # as of `VisionTransformer`
    padding_patch = None

    stem_channels: int = 128
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    dilated: tuple[bool, ...] = (False, False, True)
    out_indices: tuple[int, ...] = (0, 3)
    basic: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode; `train` uses (and updates) batch statistics."""
        x = _stem_and_pool(image, self.stem_channels, self.dtype, train=train, plain=self.basic)
        maps, dilation = [], 1
        for stage, (count, width) in enumerate(zip(self.blocks, self.channels, strict=True)):
            stride, before = (1 if stage == 0 else 2), dilation
            if stage > 0 and self.dilated[stage - 1]:
                stride, dilation = 1, 2 * dilation
            for i in range(count):
                first = before if i == 0 else dilation
                options = {"stride": stride if i == 0 else 1, "dtype": self.dtype}
                options["name"] = f"stage_{stage}_block_{i}"
                if self.basic:
                    block = _SharedBasicBlock(
                        width, dilation=dilation, first_dilation=first, **options
                    )
                else:
                    block = _SharedBottleneck(width, dilation=first, **options)
                x = block(x, train=train)
            maps.append(x)
        return Features(maps=tuple(maps[i] for i in self.out_indices))


class ResNetV1c(nn.Module):
    """Stem, max pooling and the first stage; as published `stem_channels` 64, `base_channels` 64.

    ResNet-50 and ResNet-101 have the same first stage of three blocks.
    """

    stem_channels: int = 64
    base_channels: int = 64
    num_blocks: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b y x c"]:
        """Encode; `train` uses (and updates) batch statistics."""
        x = _stem_and_pool(image, self.stem_channels, self.dtype, train=train)
        for i in range(self.num_blocks):
            x = Bottleneck(self.base_channels, zero_init=True, dtype=self.dtype, name=f"block_{i}")(
                x, train=train
            )
        return x


def _stem_and_pool(
    image: Array, channels: int, dtype: DTypeLike, *, train: bool, plain: bool = False
) -> Array:
    if plain:
        options = {"kernel_size": 7, "stride": 2, "kernel_init": HE_NORMAL, "dtype": dtype}
        stem = ConvNorm(channels, norm="batch", **options, name="stem")
    else:
        stem = Stem(channels, dtype=dtype, name="stem")
    x = stem(image, train=train)
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
