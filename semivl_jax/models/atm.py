"""ATM (attention to mask), ZegCLIP's decoder: the attention maps of class queries are the masks.

In: `Features` of a CLIP tower, the dense embedding last in `maps`, and `ClassText` of the same dimension d.
Out: float32 logits B×y×x×n on the patch grid. The number of classes is nowhere in the parameters.

Source: docs/semivl.md 8 and 9.20.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from semivl_jax.models.attention import check_heads
from semivl_jax.models.clip_guidance import classes_in_order, rows_in_class_order
from semivl_jax.models.transformer import layer_norm
from semivl_jax.types import ClassText, Features

_EPS = 1e-5
_NORMAL = nn.initializers.normal(0.02)


class MaskAttention(nn.Module):
    """Cross attention that also returns its scores before the softmax."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, query: Float[Array, "b k d"], patches: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b k d"], Float32[Array, "b k t"]]:
        """(attended values, scaled dot products averaged over the heads)."""
        width = query.shape[-1]
        split = (self.num_heads, width // self.num_heads)
        q, k, v = (
            nn.DenseGeneral(split, kernel_init=_NORMAL, dtype=self.dtype, name=name)(x)
            for name, x in (("query", query), ("key", patches), ("value", patches))
        )
        scores = jnp.einsum("bkhd,bthd->bhkt", q, k, preferred_element_type=jnp.float32)
        scores = scores * split[1] ** -0.5
        mixed = jnp.einsum("bhkt,bthd->bkhd", jax.nn.softmax(scores).astype(self.dtype), v)
        out = nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=_NORMAL, dtype=self.dtype, name="out"
        )
        return out(mixed), scores.mean(axis=1)


class MaskLayer(nn.Module):
    """Post-norm block of mask attention and an MLP."""

    num_heads: int
    mlp_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, query: Float[Array, "b k d"], patches: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b k d"], Float32[Array, "b k t"]]:
        """(next queries, masks)."""

        def dense(name: str, width: int, x: Array) -> Array:
            return nn.Dense(width, kernel_init=_NORMAL, dtype=self.dtype, name=name)(x)

        attend = MaskAttention(self.num_heads, dtype=self.dtype, name="attention")
        mixed, masks = attend(query, patches)
        query = layer_norm("norm1", eps=_EPS, dtype=self.dtype)(query + mixed)
        hidden = nn.relu(dense("mlp_in", self.mlp_dim, query))
        query = query + dense("mlp_out", query.shape[-1], hidden)
        return layer_norm("norm2", eps=_EPS, dtype=self.dtype)(query), masks


class MaskDecoder(nn.Module):
    """ZegCLIP's ATM decoder; defaults are the published sizes (the MLP has 4·d channels).

    Queries are projections of the text and its product with the image's embedding.
    """

    num_layers: int = 3
    num_heads: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, text: ClassText, *, train: bool = False
    ) -> Float32[Array, "b y x n"]:
        """Decode; `train` has no effect. ValueError unless `num_heads` divides d."""
        del train
        dense, embeddings = features.maps[-1], rows_in_class_order(text).astype(jnp.float32)
        batch, rows, cols, width = dense.shape
        check_heads(self.num_heads, width=width)
        texts = jnp.broadcast_to(embeddings[None], (batch, *embeddings.shape))
        descriptor = jnp.concatenate([features.pooled[:, None] * texts, texts], axis=-1)
        query = nn.Dense(width, kernel_init=_NORMAL, dtype=self.dtype, name="query_projection")(
            descriptor.astype(self.dtype)
        )
        patches = dense.reshape(batch, rows * cols, width).astype(self.dtype)
        for i in range(self.num_layers):
            layer = MaskLayer(self.num_heads, 4 * width, dtype=self.dtype, name=f"layer_{i}")
            query, masks = layer(query, patches)
        masks = masks.transpose(0, 2, 1).reshape(batch, rows, cols, -1)
        return classes_in_order(masks, text)
