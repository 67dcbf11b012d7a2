"""Text towers of CLIP (docs/semivl.md 2) and SigLIP.

In: token ids k×T int32; for CLIP padded with zeros after the end-of-text token, which has the largest id
of its row. Out: embeddings k×D float32, not normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float32, Int

from semivl_jax.models.transformer import Encoder


class TextTransformer(nn.Module):
    """CLIP's causal transformer; the output is the end-of-text token. Defaults are CLIP's sizes."""

    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    out_dim: int = 512
    context_length: int = 77
    quick_gelu: bool = True
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[Array, "k {self.context_length}"]
    ) -> Float32[Array, "k {self.out_dim}"]:
        """Embed token rows."""
        tokens = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )(ids)
        table_shape = (1, self.context_length, self.width)
        table = self.param("pos_embedding", nn.initializers.normal(0.01), table_shape)
        x, _ = Encoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=4 * self.width,
            causal=True,
            quick_gelu=self.quick_gelu,
            eps=self.eps,
            dtype=self.dtype,
            name="Transformer",
        )(tokens + table.astype(self.dtype))
        end = jnp.argmax(ids, axis=-1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        project = nn.Dense(
            self.out_dim,
            use_bias=False,
            kernel_init=nn.initializers.normal(self.width**-0.5),
            dtype=self.dtype,
            name="projection",
        )
        return project(x).astype(jnp.float32)


class SiglipText(nn.Module):
    """SigLIP's transformer with full attention; the output is the last token. Named as in big_vision."""

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


def text_tower(sizes: Mapping[str, Any]) -> TextTransformer | SiglipText:
    """The text tower of these sizes: those of SigLIP have an MLP width of their own."""
    return SiglipText(**sizes) if "mlp_dim" in sizes else TextTransformer(**sizes)
