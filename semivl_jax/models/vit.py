"""CLIP's image tower with dense output (METHOD section 1).

In: images B×H×W×3, normalised (float, about −3 to 3), of any size: sides that the patch size does
not divide are padded with zeros on the right and below. Out: `Features` on the patch grid
⌈H/p⌉×⌈W/p⌉: value paths of the tapped blocks (raw, `dtype`) and the dense embedding (float32, unit
length over channels); `pooled` is the image's embedding (float32, unit length).

Dense embedding and out_indices come from the value path, where a token sees only itself: attention mixes
positions, which is what one embedding per pixel does not want (MaskCLIP). What a caller leaves
unused (`pooled`, the last block's attention) is dropped by the compiler.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.pos_embed import table_at
from semivl_jax.models.transformer import (
    Encoder,
    Remat,
    check_heads,
    check_taps,
    layer_norm,
    patch_embedding,
    with_class_token,
)
from semivl_jax.types import Features


class VisionTransformer(nn.Module):
    """ViT with class token, pre-norm and projection; the published size is ViT-B/16.

    grid   rows and columns of the stored position table (the training crop // patch_size)
    out_indices   maps to return, ascending: i < depth is block i's value path, depth the dense embedding.
           A tap on the last block is normed by the final norm, as published; the others are raw.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    out_dim: int
    grid: tuple[int, int]
    out_indices: tuple[int, ...]
    quick_gelu: bool = False
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode images; `train` changes nothing: there are no batch norms and no dropout.

        ValueError for out_indices that the tower does not have or not in order.
        """
        del train
        check_heads(self.num_heads, width=self.width)
        check_taps(self.out_indices, last=self.depth, meaning="depth")
        x = self._patches(image)
        batch, rows, cols, _ = x.shape
        x = self._tokens(x)
        # The dense embedding is always made from the last block; unused, it costs nothing.
        tokens, values = Encoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            value_paths=tuple(sorted({*self.out_indices, self.depth - 1} - {self.depth})),
            quick_gelu=self.quick_gelu,
            eps=self.eps,
            dtype=self.dtype,
            remat=self.remat,
            name="Transformer",
        )(x)
        project = nn.Dense(self.out_dim, use_bias=False, dtype=self.dtype, name="projection")
        values[self.depth] = l2_normalize(project(values[self.depth - 1]))
        maps = tuple(values[tap].reshape(batch, rows, cols, -1) for tap in self.out_indices)
        return Features(maps=maps, pooled=l2_normalize(project(tokens[:, 0])))

    def _patches(self, image: Array) -> Array:
        patch = self.patch_size
        below, right = (-size % patch for size in image.shape[1:3])
        image = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)))
        embed = patch_embedding(self.width, patch, use_bias=False, dtype=self.dtype)
        return embed(image.astype(self.dtype))

    def _tokens(self, patches: Array) -> Array:
        width = patches.shape[-1]
        cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, width))
        table_shape = (1, 1 + self.grid[0] * self.grid[1], width)
        table = self.param("pos_embedding", nn.initializers.normal(width**-0.5), table_shape)
        table = table_at(jnp.asarray(table), self.grid, patches.shape[1:3])
        x = with_class_token(jnp.asarray(cls), patches) + table.astype(self.dtype)
        return layer_norm("pre_norm", eps=self.eps, dtype=self.dtype)(x)
