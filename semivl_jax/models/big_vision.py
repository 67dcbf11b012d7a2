"""The towers of big_vision: AugReg's ViT, and image and text tower of SigLIP and SigLIP 2.

In: images B×H×W×3, normalised with the ImageNet statistics as for every encoder here (inside they become
[-1, 1], which these towers were trained on); token ids k×T int32, padded to T. Out: `Features` with the
tapped blocks' tokens after the final norm on the patch grid, and as `pooled` the image's embedding (of the
map head or the class token); text embeddings k×D float32; neither of unit length.

Parameters are named and shaped as big_vision's, and so are the numbers: GELU is the tanh approximation,
LayerNorm epsilon 1e-6, the position table is added before the class token is put in front. Sides that the
patch size does not divide are padded with zeros on the right and below, as for CLIP's tower; the table
follows (bicubic).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.normalization import symmetric
from semivl_jax.models.pos_embed import table_at
from semivl_jax.models.transformer import (
    Encoder,
    Mlp,
    Remat,
    TappedEncoder,
    check_heads,
    check_taps,
    layer_norm,
    patch_embedding,
    with_class_token,
)
from semivl_jax.types import Features

EPS = 1e-6


class MapHead(nn.Module):
    """Multi-head attention pooling: a learnt probe looks at all tokens, then a residual MLP."""

    num_heads: int
    mlp_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b c"]:
        """One vector per sequence."""
        batch, _, width = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        probe = jnp.broadcast_to(jnp.asarray(probe, x.dtype), (batch, 1, width))
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, name="MultiHeadDotProductAttention_0"
        )
        pooled = attention(probe, x)
        mlp = Mlp(self.mlp_dim, tanh_gelu=True, dtype=self.dtype, name="MlpBlock_0")
        norm = layer_norm("LayerNorm_0", eps=EPS, dtype=self.dtype)
        return (pooled + mlp(norm(pooled)))[:, 0]


class PlainViT(nn.Module):
    """Image tower; with a class token it is AugReg's ViT, with a map head SigLIP's.

    grid   rows and columns of the stored position table
    out_indices   blocks whose tokens are returned, ascending
    """

    grid: tuple[int, int]
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    out_indices: tuple[int, ...] = (4, 11)
    class_token: bool = True
    map_head: bool = False
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode; `train` changes nothing: there are no batch norms and no dropout.

        ValueError for out_indices that the tower does not have or not in order, and for a tower that has neither
        a class token nor a map head.
        """
        check_heads(self.num_heads, width=self.width)
        check_taps(self.out_indices, last=self.depth - 1, meaning="the last block")
        if not (self.class_token or self.map_head):
            raise ValueError("class_token=False and map_head=False leave nothing to pool with")
        patches = self._patches(image)
        batch, rows, cols, width = patches.shape
        x = patches.reshape(batch, rows * cols, width)
        if self.class_token:
            cls = self.param("cls", nn.initializers.zeros, (1, 1, width))
            x = with_class_token(cls, patches)
        first = int(self.class_token)
        tokens, tapped = TappedEncoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            out_indices=self.out_indices,
            tanh_gelu=True,
            eps=EPS,
            dtype=self.dtype,
            remat=self.remat,
            name="Transformer",
        )(x, train=train)
        maps = tuple(t[:, first:].reshape(batch, rows, cols, width) for t in tapped)
        if not self.map_head:
            return Features(maps=maps, pooled=tokens[:, 0])
        head = MapHead(self.num_heads, self.mlp_dim, self.dtype, name="MAPHead_0")
        return Features(maps=maps, pooled=head(tokens))

    def _patches(self, image: Array) -> Array:
        """Embedded patches with their positions."""
        below, right = (-size % self.patch_size for size in image.shape[1:3])
        image = jnp.pad(
            symmetric(image).astype(self.dtype), ((0, 0), (0, below), (0, right), (0, 0))
        )
        embed = patch_embedding(self.width, self.patch_size, use_bias=True, dtype=self.dtype)
        patches = embed(image)
        shape = (1, self.grid[0] * self.grid[1], self.width)
        table = self.param("pos_embedding", nn.initializers.normal(self.width**-0.5), shape)
        # `table_at` resizes tables with a row for the class token, which stays as it is.
        whole = jnp.pad(jnp.asarray(table), ((0, 0), (1, 0), (0, 0)))
        grid = patches.shape[1:3]
        table = table_at(whole, self.grid, grid)[:, 1:].reshape(1, *grid, self.width)
        return patches + table.astype(self.dtype)


class PlainTextTower(nn.Module):
    """SigLIP's text tower: every token sees every other, the last one is read."""

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    out_dim: int
    context_length: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[Array, "k {self.context_length}"]
    ) -> Float32[Array, "k {self.out_dim}"]:
        """Embed token rows."""
        embed = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="Embed_0")
        table_shape = (1, self.context_length, self.width)
        init = nn.initializers.normal(self.width**-0.5)
        table = jnp.asarray(self.param("pos_embedding", init, table_shape), self.dtype)
        tokens, _ = Encoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            tanh_gelu=True,
            eps=EPS,
            dtype=self.dtype,
            name="Encoder_0",
        )(embed(ids) + table)
        head = nn.Dense(self.out_dim, dtype=self.dtype, name="head")
        return head(tokens[:, -1]).astype(jnp.float32)


class Siglip(nn.Module):
    """Image and text tower side by side, named as big_vision names them."""

    img: nn.Module
    txt: nn.Module

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], ids: Int[Array, "k t"]
    ) -> Float32[Array, "b k"]:
        """How well every text fits every image: logits whose sigmoid is SigLIP's probability."""
        temperature = jnp.asarray(self.param("t", nn.initializers.constant(jnp.log(10.0)), (1,)))
        bias = jnp.asarray(self.param("b", nn.initializers.constant(-10.0), (1,)))
        images, texts = l2_normalize(self.img(image).pooled), l2_normalize(self.txt(ids))
        return images @ texts.T * jnp.exp(temperature)[None] + bias[None]
