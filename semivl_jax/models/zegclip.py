"""ZegCLIP: CLIP's image tower with trained prompts, and the decoder whose attention maps are the masks.

Encoder, in: images B×H×W×3, normalised (float, about −3 to 3), of any size; rows and columns that fill no
whole patch are dropped. Out: `Features` on the patch grid ⌊H/p⌋×⌊W/p⌋ as of the dense tower
(`models.vit`), but of the tokens themselves, without the value path.

Decoder, in: those features, the dense embedding last in `maps`, and `ClassText` of the same dimension d.
Out: float32 logits B×y×x×n on the patch grid. The number of classes is nowhere in the parameters.

Source: METHOD 8 and trap 20 of section 9.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from semivl_jax.models.clip_guidance import classes_in_order, rows_in_class_order
from semivl_jax.models.layers import l2_normalize, uniform
from semivl_jax.models.pos_embed import table_at
from semivl_jax.models.transformer import (
    Remat,
    check_heads,
    check_taps,
    layer_norm,
    patch_embedding,
    shared_block,
    with_class_token,
)
from semivl_jax.types import ClassText, Features

_PROMPT_EPS = 1e-6
_CLIP_EPS = 1e-5
_NORMAL = nn.initializers.normal(0.02)


class Prompts(nn.Module):
    """The trained part of the encoder: tokens for the first block and for `depth` blocks after it.

    They pass one linear layer and dropout; `norm` is for all tokens after the last block.
    """

    count: int
    depth: int
    width: int
    patch_size: int
    drop_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        """Declare parameters, drawn as visual prompt tuning draws them."""
        init = uniform((6 / (3 * self.patch_size**2 + self.width)) ** 0.5)
        self.first = self.param("embedding", init, (1, self.count, self.width))
        self.deep = self.param("deep_embedding", init, (self.depth, self.count, self.width))
        self.projection = nn.Dense(
            self.width,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            bias_init=uniform(self.width**-0.5),
            dtype=self.dtype,
        )
        self.dropout = nn.Dropout(self.drop_rate)
        self.norm = layer_norm(None, eps=_PROMPT_EPS, dtype=self.dtype)

    def tokens(self, block: int, batch: int, *, train: bool) -> Float[Array, "b p c"]:
        """Prompts for a block; dropout acts if `train` and the caller gave a "dropout" key."""
        rows = self.first[0] if block == 0 else self.deep[block - 1]
        rows = self.projection(jnp.asarray(rows, self.dtype))
        rows = jnp.broadcast_to(rows[None], (batch, *rows.shape))
        return self.dropout(rows, deterministic=not (train and self.has_rng("dropout")))

    def normalize(self, tokens: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """The norm that stands before CLIP's own."""
        return self.norm(tokens)


class PromptedEncoder(nn.Module):
    """CLIP's blocks with prompts behind the class token, new ones in each of the first blocks.

    Blocks after those see no prompts. Returns all tokens after the final norms, and the raw patch tokens
    of the tapped blocks.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    out_indices: tuple[int, ...]
    prompt_depth: int
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], prompts: Prompts, *, train: bool
    ) -> tuple[Float[Array, "b _ c"], dict[int, Float[Array, "b t-1 c"]]]:
        """`x` are class and patch tokens, without prompts."""
        make = shared_block(self.remat)
        batch, patches = x.shape[0], x.shape[1] - 1
        tapped = {}
        for i in range(self.depth):
            parts = [x[:, :1], x[:, -patches:]]
            if i <= self.prompt_depth:
                parts.insert(1, prompts.tokens(i, batch, train=train))
            block = make(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                quick_gelu=True,
                eps=_CLIP_EPS,
                dtype=self.dtype,
                name=f"encoderblock_{i}",
            )
            x, _ = block(jnp.concatenate(parts, axis=1))
            if i in self.out_indices:
                tapped[i] = x[:, -patches:]
        norm = layer_norm("encoder_norm", eps=_CLIP_EPS, dtype=self.dtype)
        return norm(prompts.normalize(x)), tapped


class PromptedVisionTransformer(nn.Module):
    """ViT of CLIP with deep visual prompts; names of parameters are the dense tower's, and "prompt".

    grid           rows and columns of the stored position table (the training crop // patch_size)
    out_indices           as of `VisionTransformer`: i < depth is block i, raw; depth is the dense embedding
    prompts        tokens added to each block
    prompt_depth   blocks after the first that get prompts of their own; published: all of them
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    out_dim: int
    grid: tuple[int, int]
    out_indices: tuple[int, ...]
    prompts: int = 10
    prompt_depth: int = 11
    prompt_dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode images; with `train` and a "dropout" key, prompts are dropped.

        ValueError for out_indices or a depth of prompts that the tower does not have, and for an image without
        a whole patch.
        """
        self._check(image.shape[1:3])
        x = patch_embedding(self.width, self.patch_size, use_bias=False, dtype=self.dtype)(
            image.astype(self.dtype)
        )
        batch, rows, cols, _ = x.shape
        prompts = Prompts(
            self.prompts,
            self.prompt_depth,
            self.width,
            self.patch_size,
            self.prompt_dropout,
            self.dtype,
            name="prompt",
        )
        tokens, maps = PromptedEncoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            out_indices=self.out_indices,
            prompt_depth=self.prompt_depth,
            dtype=self.dtype,
            remat=self.remat,
            name="Transformer",
        )(self._tokens(x), prompts, train=train)
        project = nn.Dense(self.out_dim, use_bias=False, dtype=self.dtype, name="projection")
        maps[self.depth] = l2_normalize(project(tokens[:, -rows * cols :]))
        return Features(
            maps=tuple(maps[tap].reshape(batch, rows, cols, -1) for tap in self.out_indices),
            pooled=l2_normalize(project(tokens[:, 0])),
        )

    def _check(self, size: tuple[int, int]) -> None:
        check_heads(self.num_heads, width=self.width)
        check_taps(self.out_indices, last=self.depth, meaning="depth")
        if not 1 <= self.prompt_depth < self.depth or self.prompts < 1:
            raise ValueError(
                f"prompts={self.prompts}, prompt_depth={self.prompt_depth}: choose at least one prompt, "
                f"and 1 to {self.depth - 1} blocks after the first"
            )
        if min(size) < self.patch_size:
            raise ValueError(
                f"an image of {size[0]}×{size[1]} has no whole patch of {self.patch_size} pixels: feed a "
                "larger one"
            )

    def _tokens(self, patches: Array) -> Array:
        width = patches.shape[-1]
        cls = jnp.asarray(self.param("cls", nn.initializers.normal(width**-0.5), (1, 1, width)))
        table_shape = (1, 1 + self.grid[0] * self.grid[1], width)
        table = self.param("pos_embedding", nn.initializers.normal(width**-0.5), table_shape)
        table = table_at(jnp.asarray(table), self.grid, patches.shape[1:3], resizing="bilinear")
        # The class embedding is a token and, once more, part of the token's position.
        x = with_class_token(2 * cls, patches) + table.astype(self.dtype)
        return layer_norm("pre_norm", eps=_CLIP_EPS, dtype=self.dtype)(x)


class MaskAttention(nn.Module):
    """Attention of class queries to patches that also returns what its softmax is taken of.

    Returns (attended values, scaled dot products averaged over the heads, float32).
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, query: Float[Array, "b k d"], patches: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b k d"], Float32[Array, "b k t"]]:
        """Every query looks at all patches."""
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
    """Mask attention and an MLP, each with its residual and a norm behind it."""

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
        query = layer_norm("norm1", eps=_CLIP_EPS, dtype=self.dtype)(query + mixed)
        hidden = nn.relu(dense("mlp_in", self.mlp_dim, query))
        query = query + dense("mlp_out", query.shape[-1], hidden)
        return layer_norm("norm2", eps=_CLIP_EPS, dtype=self.dtype)(query), masks


class MaskDecoder(nn.Module):
    """ZegCLIP's ATM decoder; defaults are the published sizes (the MLP has 4·d channels).

    Queries are made of the text and of its product with the image's embedding, the relationship
    descriptor.
    """

    num_layers: int = 3
    num_heads: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, text: ClassText, *, train: bool = False
    ) -> Float32[Array, "b y x n"]:
        """Decode. `train` changes nothing: dropout is off in the published training.

        ValueError for features without an embedding of the image, of another dimension than the text, or
        that the heads cannot share.
        """
        del train
        dense, embeddings = features.maps[-1], rows_in_class_order(text).astype(jnp.float32)
        self._check(features, embeddings)
        batch, rows, cols, width = dense.shape
        words = jnp.broadcast_to(embeddings[None], (batch, *embeddings.shape))
        descriptor = jnp.concatenate([features.pooled[:, None] * words, words], axis=-1)
        query = nn.Dense(width, kernel_init=_NORMAL, dtype=self.dtype, name="query_projection")(
            descriptor.astype(self.dtype)
        )
        patches = dense.reshape(batch, rows * cols, width).astype(self.dtype)
        for i in range(self.num_layers):
            layer = MaskLayer(self.num_heads, 4 * width, dtype=self.dtype, name=f"layer_{i}")
            query, masks = layer(query, patches)
        masks = masks.transpose(0, 2, 1).reshape(batch, rows, cols, -1)
        return classes_in_order(masks, text)

    def _check(self, features: Features, embeddings: Array) -> None:
        width = features.maps[-1].shape[-1]
        if features.pooled is None:
            raise ValueError(
                "the mask decoder needs the embedding of the whole image, which this encoder does not "
                "give: take a CLIP tower"
            )
        if not width == embeddings.shape[-1] == features.pooled.shape[-1]:
            raise ValueError(
                f"the dense map has {width} channels, the image's embedding "
                f"{features.pooled.shape[-1]}, the text's {embeddings.shape[-1]}: the mask decoder needs "
                "all three from one vision-language model; end the out_indices with the dense embedding"
            )
        check_heads(self.num_heads, width=width)
