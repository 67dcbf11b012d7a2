"""Convolutional encoder for fine detail: ResNet-V1c up to its first stage (METHOD 3, conv features).

In: images B×H×W×3, normalised with the ImageNet statistics. Out: a map at a quarter of the
resolution, B×⌈H/4⌉×⌈W/4⌉×(4·base_channels). "V1c" is the stem of three 3×3 convolutions in place of
one 7×7. Parameters live in "params", running statistics of the batch norms in "batch_stats".
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.layers import ConvNorm

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
    """Residual block 1×1, 3×3, 1×1 (to 4·channels); fresh blocks are the identity on their branch.

    The shortcut is projected where it has another number of channels.
    """

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x _"], *, train: bool) -> Float[Array, "b y x _"]:
        """Apply the block."""

        def layer(name: str, x: Array, width: int, size: int, *, last: bool) -> Array:
            return ConvNorm(
                width,
                norm="batch",
                kernel_size=size,
                relu=not last,
                kernel_init=HE_NORMAL,
                scale_init=nn.initializers.zeros if name == "conv3" else nn.initializers.ones,
                dtype=self.dtype,
                name=name,
            )(x, train=train)

        wide = EXPANSION * self.channels
        out = layer("conv1", x, self.channels, 1, last=False)
        out = layer("conv2", out, self.channels, 3, last=False)
        out = layer("conv3", out, wide, 1, last=True)
        shortcut = x if x.shape[-1] == wide else layer("shortcut", x, wide, 1, last=True)
        return nn.relu(out + shortcut)


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
        x = Stem(self.stem_channels, dtype=self.dtype, name="stem")(image, train=train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i in range(self.num_blocks):
            x = Bottleneck(self.base_channels, dtype=self.dtype, name=f"block_{i}")(x, train=train)
        return x
