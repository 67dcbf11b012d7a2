"""DeepLabV3+ head on two maps of a vision transformer or a residual network (METHOD 8).

In: `Features` with exactly two maps, a low-level and a high-level one, on grids that may differ. Out:
float32 logits B×y×x×n on the grid of the low-level map. Running statistics of the batch norms live in
the collection "batch_stats".
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float32

from semivl_jax.models.layers import ASPP, Conv, ConvNorm
from semivl_jax.models.resize import bilinear
from semivl_jax.types import ClassText, Features


class DeepLabHead(nn.Module):
    """ASPP of the high-level map, fused with the low-level one.

    `aspp_channels` 0: an eighth of the channels of the high-level map, as published.
    As published, `align_corners` is for residual networks only (METHOD 9, trap 21).
    """

    num_classes: int
    channels: int = 256
    low_channels: int = 48
    aspp_channels: int = 0
    dilations: tuple[int, ...] = (1, 6, 12, 18)
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
        high = ASPP(
            self.aspp_channels or high.shape[-1] // 8,
            norm="batch",
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
