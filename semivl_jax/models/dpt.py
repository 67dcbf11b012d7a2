"""DPT head on four maps of a plain vision transformer: the decoder of UniMatch V2.

In: `Features` with exactly four maps on one patch grid y×x, shallow to deep. Out: float32 logits of the
image's size, B×(p·y)×(p·x)×n for patches of p pixels. The maps are brought to 4, 2, 1 and ½ times the grid
and fused from the coarsest to the finest; every resize keeps the corners aligned. There are no norms.

Source: DPT (arXiv 2103.13413) as the public implementation of UniMatch V2 (arXiv 2410.10777) has it.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from semivl_jax.models.layers import Conv, Upsample
from semivl_jax.models.resize import bilinear
from semivl_jax.types import ClassText, Features


class ResidualUnit(nn.Module):
    """ReLU and convolution, twice, added to the input."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        """Apply the unit."""
        out = x
        for name in ("conv1", "conv2"):
            conv = Conv(x.shape[-1], use_bias=True, dtype=self.dtype, name=name)
            out = conv(nn.relu(out))
        return out + x


class FusionBlock(nn.Module):
    """Adds a finer map to the fused one and resizes the sum."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, *maps: Float[Array, "b y x c"], size: tuple[int, int]
    ) -> Float[Array, "b {size[0]} {size[1]} c"]:
        """Fuse one map (the coarsest), or the fused map and a finer one."""
        x = maps[0]
        if len(maps) == 2:
            x = x + ResidualUnit(dtype=self.dtype, name="finer")(maps[1])
        x = ResidualUnit(dtype=self.dtype, name="fused")(x)
        x = bilinear(x, size, align_corners=True)
        out = Conv(x.shape[-1], kernel_size=1, use_bias=True, dtype=self.dtype, name="out")
        return out(x)


class DPTHead(nn.Module):
    """The head; defaults are the published ones behind ViT-B/14.

    `patch_size` None: the maps are those of a convolutional network, each about half as large as the one
    before. They are not scaled, `out_channels` is not used, and logits have twice the size of the first.
    """

    num_classes: int
    channels: int = 128
    out_channels: tuple[int, int, int, int] = (96, 192, 384, 768)
    patch_size: int | None = 14
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, text: ClassText | None = None, *, train: bool = False
    ) -> Float32[Array, "b _ _ {self.num_classes}"]:
        """Decode; `text` and `train` are ignored. ValueError unless there are four maps (on one grid)."""
        del text, train
        if self.patch_size is not None:
            rows, cols = self._grid(features)
        elif len(features.maps) != 4:
            raise ValueError(
                f"the DPT head takes four maps, the encoder gives {len(features.maps)}"
            )
        levels = [self._level(i, x) for i, x in enumerate(features.maps)]
        sizes = [level.shape[1:3] for level in levels]
        x = None
        for i in reversed(range(4)):
            maps = (levels[i],) if x is None else (x, levels[i])
            size = sizes[i - 1] if i > 0 else tuple(2 * side for side in sizes[0])
            x = FusionBlock(dtype=self.dtype, name=f"fusion_{i}")(*maps, size=size)
        x = nn.relu(self._conv("head", self.channels, 3)(x))
        logits = self._conv("classifier", self.num_classes, 1)(x).astype(jnp.float32)
        if self.patch_size is None:
            return logits
        size = (rows * self.patch_size, cols * self.patch_size)
        return bilinear(logits, size, align_corners=True)

    def _grid(self, features: Features) -> tuple[int, int]:
        grids = {x.shape[1:3] for x in features.maps}
        if len(features.maps) != 4 or len(grids) != 1:
            raise ValueError(
                f"the DPT head takes four maps on one grid, the encoder gives {len(features.maps)} on "
                f"{sorted(grids)}: choose four out_indices of a vision transformer"
            )
        return grids.pop()

    def _level(self, i: int, x: Array) -> Array:
        """A map of the encoder at its scale, with `channels` channels."""
        if self.patch_size is None:
            return Conv(self.channels, dtype=self.dtype, name=f"level_{i}")(x)
        width = self.out_channels[i]
        x = self._conv(f"tap_{i}", width, 1)(x)
        if i < 2:
            factor = 4 if i == 0 else 2
            x = Upsample(width, factor=factor, dtype=self.dtype, name=f"scale_{i}")(x)
        elif i == 3:
            x = Conv(width, stride=2, use_bias=True, dtype=self.dtype, name=f"scale_{i}")(x)
        return Conv(self.channels, dtype=self.dtype, name=f"level_{i}")(x)

    def _conv(self, name: str, width: int, size: int) -> Conv:
        return Conv(width, kernel_size=size, use_bias=True, dtype=self.dtype, name=name)
