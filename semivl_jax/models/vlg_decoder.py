"""Language-guided decoder: from similarity maps between pixels and texts to logits (docs/semivl.md 3).

In: `Features` of an encoder (the dense embedding last in `maps`, skips before it) and `ClassText` with
embeddings of the same dimension d, or a trained query per class in their place. Out: float32 logits
B×4y×4x×n for a patch grid of y×x; with other than two `up_channels` the factor is 2 per entry.

Batch and class are merged to one axis, the class fastest (b·k + class). What does not depend on the class
(projections of skips and text, and their part of the convolution after them) is computed once per image. No
parameter depends on the number of classes.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from semivl_jax.models import mesh_axes
from semivl_jax.models.attention import Attention
from semivl_jax.models.clip_guidance import classes_in_order, rows_in_class_order
from semivl_jax.models.layers import (
    ASPP,
    Conv,
    ConvNorm,
    Upsample,
    dense,
    l2_normalize,
    uniform,
)
from semivl_jax.models.resize import avg_pool, bilinear
from semivl_jax.models.transformer import layer_norm, rematerialized
from semivl_jax.types import ClassText, Features


def similarity(
    maps: Float[Array, "b y x d"], embeddings: Float[Array, "k d"]
) -> Float32[Array, "b k y x"]:
    """Cosine between every pixel's and every text's embedding, in [-1, 1], always float32."""
    if maps.shape[-1] != embeddings.shape[-1]:
        raise ValueError(
            f"the dense map has {maps.shape[-1]} channels, the text embeddings "
            f"{embeddings.shape[-1]}: take both from one vision-language model"
        )
    return jnp.einsum(
        "byxd,kd->bkyx",
        l2_normalize(maps),
        l2_normalize(embeddings),
        precision=jax.lax.Precision.HIGHEST,
    )


class TransformerBlock(nn.Module):
    """Pre-norm transformer block, LayerNorm eps 1e-5, exact GELU.

    Initialised as in torch: query, key and value Xavier-uniform as the fused (3c, c) matrix they are there.
    """

    num_heads: int
    mlp_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply the block."""
        channels = x.shape[-1]
        attention = Attention(
            self.num_heads,
            dtype=self.dtype,
            qkv_init=uniform((6 / (4 * channels)) ** 0.5),
            out_init=uniform(channels**-0.5),
            name="attention",
        )

        def linear(features: int, name: str, x: Array) -> Array:
            return dense(features, fan_in=x.shape[-1], dtype=self.dtype, name=name)(x)

        x = x + attention(layer_norm("norm1", eps=1e-5, dtype=self.dtype)(x))[0]
        hidden = linear(self.mlp_dim, "mlp_in", layer_norm("norm2", eps=1e-5, dtype=self.dtype)(x))
        return x + linear(channels, "mlp_out", nn.gelu(hidden, approximate=False))


class SemanticLayer(nn.Module):
    """Attention over the classes at every position, pooled with `pool_size` (None: not pooled).

    Class tokens are concatenated with their projected text; the result, resized to the grid, is added to the
    input (docs/semivl.md 3.5; the block contains a residual of its own, 9.3).
    """

    num_heads: int
    mlp_dim: int
    pool_size: tuple[int, int] | None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "bk y x c"], text: Float[Array, "k t"]
    ) -> Float[Array, "bk y x c"]:
        """Apply the layer. ValueError for a grid smaller than the pooling window."""
        grid, channels, classes = x.shape[1:3], x.shape[-1], text.shape[0]
        pooled = x if self.pool_size is None else avg_pool(x, self.pool_size)
        rows, cols = pooled.shape[1:3]
        maps = pooled.reshape(-1, classes, rows, cols, channels)
        tokens = maps.transpose(0, 2, 3, 1, 4).reshape(-1, classes, channels)
        texts = jnp.broadcast_to(text[None], (tokens.shape[0], *text.shape))
        block = TransformerBlock(self.num_heads, self.mlp_dim, dtype=self.dtype, name="block")
        tokens = block(jnp.concatenate([tokens, texts], axis=-1))[..., :channels]
        maps = tokens.reshape(-1, rows, cols, classes, channels).transpose(0, 3, 1, 2, 4)
        return x + bilinear(maps.reshape(pooled.shape), grid, align_corners=True)


class UpBlock(nn.Module):
    """Doubles the grid, then two convolutions over the result and the skip of each image."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "bk y x c"], skip: Float[Array, "b _ _ s"]
    ) -> Float[Array, "bk 2*y 2*x {self.features}"]:
        """`skip` (of any size) counts among the c channels: the upsampled map has c - s."""
        own = x.shape[-1] - skip.shape[-1]
        if own < 1:
            raise ValueError(
                f"skip_channels={skip.shape[-1]} leave none of the {x.shape[-1]} channels for the upsampled "
                "map: choose fewer"
            )
        large = Upsample(own, dtype=self.dtype, name="up")(x)
        skip = bilinear(skip, large.shape[1:3], align_corners=True)
        conv1, conv2 = (
            ConvNorm(self.features, norm="group", dtype=self.dtype, name=name)
            for name in ("conv1", "conv2")
        )
        return conv2(conv1(large, skip))


class VLGDecoder(nn.Module):
    """The language-guided decoder; defaults are the published sizes.

    Skips are, deepest first, the maps before the dense embedding and, with `use_conv_features`, the map of
    the convolutional encoder. `skip_channels` and `up_channels` have one entry per doubling of the grid.
    With `num_queries` every class has a trained vector in place of its text, for encoders without texts.
    `remat` = "blocks": pyramid, semantic layers and upsampling are rematerialised from their inputs.
    """

    channels: int = 128
    text_channels: int = 128
    up_channels: tuple[int, ...] = (64, 32)
    skip_channels: tuple[int, ...] = (32, 16)
    num_layers: int = 2
    num_heads: int = 4
    mlp_dim: int = 512
    pool_size: tuple[int, int] | None = (4, 4)
    kernel_size: int = 7
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    use_conv_features: bool = False
    num_queries: int = 0
    remat: Literal["none", "blocks"] = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, text: ClassText | None, *, train: bool = False
    ) -> Float32[Array, "b y x n"]:
        """Decode; `train` has no effect, nor `text` with `num_queries`.

        ValueError for another number of skips than `skip_channels` and `up_channels` have, for embeddings of
        different dimensions, and for a grid smaller than `pool_size`.
        """
        del train
        skips = self._skips(features)
        if self.num_queries:
            text = self._queries(features.maps[-1].shape[-1])
        embeddings = rows_in_class_order(text)
        sim = similarity(features.maps[-1], embeddings)
        b, k, rows, cols = sim.shape
        maps = mesh_axes.over_classes(sim.reshape(-1, rows, cols, 1))
        x = self._conv("conv1", self.channels, self.kernel_size)(maps)
        pyramid, semantic, doubling = (
            rematerialized(part, self.remat) for part in (ASPP, SemanticLayer, UpBlock)
        )
        x = x + pyramid(
            self.channels, norm="group", dilations=self.dilations, dtype=self.dtype, name="aspp"
        )(x)
        project = dense(
            self.text_channels,
            fan_in=embeddings.shape[-1],
            dtype=self.dtype,
            name="text_projection",
        )
        text_features = nn.relu(project(l2_normalize(embeddings)))
        for i in range(self.num_layers):
            x = semantic(
                self.num_heads, self.mlp_dim, self.pool_size, dtype=self.dtype, name=f"semantic_{i}"
            )(x, text_features)
        for i, skip in enumerate(skips):
            skip = nn.relu(self._conv(f"skip_projection_{i}", self.skip_channels[i], 3)(skip))
            x = doubling(self.up_channels[i], dtype=self.dtype, name=f"up{i + 1}")(x, skip)
        logits = self._conv("head", 1, 3)(x).astype(jnp.float32)
        logits = logits.reshape(b, k, *logits.shape[1:3]).transpose(0, 2, 3, 1)
        return classes_in_order(logits, text)

    def _queries(self, width: int) -> ClassText:
        count = self.num_queries
        rows = self.param("queries", nn.initializers.normal(0.02), (count, width))
        return ClassText(jnp.asarray(rows), jnp.arange(count), count)

    def _conv(self, name: str, width: int, size: int) -> Conv:
        return Conv(width, kernel_size=size, use_bias=True, dtype=self.dtype, name=name)

    def _skips(self, features: Features) -> list[Array]:
        skips = list(reversed(features.maps[:-1]))
        if self.use_conv_features:
            skips.append(features.conv)
        if not len(skips) == len(self.skip_channels) == len(self.up_channels):
            raise ValueError(
                f"{len(skips)} skip maps for skip_channels={self.skip_channels} and "
                f"up_channels={self.up_channels}: give each as many entries as the encoder has out_indices "
                "before the dense embedding (plus one for conv features)"
            )
        return skips
