"""DeepLabV3+ head on two maps of a vision transformer or a convolutional network (docs/semivl.md 8).

In: `Features` with exactly two maps, a low-level and a high-level one, on grids that may differ. Out:
float32 logits B×y×x×n on the grid of the low-level map. Running statistics of the batch norms live in
the collection "batch_stats".
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from semivl_jax.models.layers import ASPP, Conv, ConvNorm
from semivl_jax.models.norm_layers import BatchNorm
from semivl_jax.models.resize import bilinear
from semivl_jax.types import ClassText, Features


class JointNormASPP(nn.Module):
    """`ASPP` as in CPS (arXiv 2106.01226) and MGD: the branches share a norm, and leaky ReLUs.

    Dilation 1 means a pointwise branch, any other a 3×3 one.
    """

    features: int
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x _"], *, train: bool = False
    ) -> Float[Array, "b y x {self.features}"]:
        """Apply; `train` uses (and updates) batch statistics."""

        def conv(name: str, x: Array, kernel_size: int = 1, dilation: int = 1) -> Array:
            return Conv(
                self.features,
                kernel_size=kernel_size,
                dilation=dilation,
                dtype=self.dtype,
                name=name,
            )(x)

        def norm(name: str, x: Array) -> Array:
            return nn.leaky_relu(BatchNorm(dtype=self.dtype, name=name)(x, train=train))

        branches = [
            conv(f"branch_{i}", x, kernel_size=1 if rate == 1 else 3, dilation=rate)
            for i, rate in enumerate(self.dilations)
        ]
        joined = conv("project", norm("branch_norm", jnp.concatenate(branches, axis=-1)))
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        pooled = conv("pooled_project", norm("pooled_norm", conv("pooled", mean)))
        return norm("norm", joined + pooled)


class DeepLabHead(nn.Module):
    """ASPP of the high-level map, fused with the low-level one.

    `aspp_channels` 0: an eighth of the channels of the high-level map, as published.
    `joint_norm`: the ASPP of CPS and MGD.
    As published, `align_corners` is for residual networks only (docs/semivl.md 9.21).
    """

    num_classes: int
    channels: int = 256
    low_channels: int = 48
    aspp_channels: int = 0
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    joint_norm: bool = False
    align_corners: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, text: ClassText | None = None, *, train: bool = False
    ) -> Float32[Array, "b y x {self.num_classes}"]:
        """Decode; `text` is ignored, `train` uses (and updates) batch statistics.

        ValueError unless there are two maps.
        """
        del text
        if len(features.maps) != 2:
            raise ValueError(
                f"the DeepLabV3+ head takes two maps (low, high), the encoder gives "
                f"{len(features.maps)}: choose two out_indices"
            )

        def layer(name: str, width: int, size: int, *inputs: Array) -> Array:
            unit = ConvNorm(width, norm="batch", kernel_size=size, dtype=self.dtype, name=name)
            return unit(*inputs, train=train)

        low, high = features.maps
        aspp = JointNormASPP if self.joint_norm else functools.partial(ASPP, norm="batch")
        high = aspp(
            self.aspp_channels or high.shape[-1] // 8,
            dilations=self.dilations,
            dtype=self.dtype,
            name="aspp",
        )(high, train=train)
        high = bilinear(high, low.shape[1:3], align_corners=self.align_corners)
        x = layer(
            "fuse1", self.channels, 3, layer("low_projection", self.low_channels, 1, low), high
        )
        x = layer("fuse2", self.channels, 3, x)
        classifier = Conv(
            self.num_classes, kernel_size=1, use_bias=True, dtype=self.dtype, name="classifier"
        )
        return classifier(x).astype(jnp.float32)
