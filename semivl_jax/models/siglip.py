"""SigLIP and SigLIP 2 as big_vision has them: the text tower, and both towers together.

In: token ids k×T int32, padded to T; images as for `vit`. Out: text embeddings k×D float32, not of unit
length; logits B×k. Names of parameters are big_vision's.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.transformer import Encoder


class SiglipText(nn.Module):
    """The text tower: full attention, the last token is read."""

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
            dtype=self.dtype,
            name="Encoder_0",
        )(embed(ids) + table)
        head = nn.Dense(self.out_dim, dtype=self.dtype, name="head")
        return head(tokens[:, -1]).astype(jnp.float32)


class Siglip(nn.Module):
    """Image tower (`vit.SIGLIP`) and text tower, named as in big_vision."""

    img: nn.Module
    txt: nn.Module

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], ids: Int[Array, "k t"]
    ) -> Float32[Array, "b k"]:
        """Logits of every pair; their sigmoid is the probability that text and image belong together."""
        temperature = jnp.asarray(self.param("t", nn.initializers.constant(jnp.log(10.0)), (1,)))
        bias = jnp.asarray(self.param("b", nn.initializers.constant(-10.0), (1,)))
        images, texts = l2_normalize(self.img(image).pooled), l2_normalize(self.txt(ids))
        return images @ texts.T * jnp.exp(temperature)[None] + bias[None]
