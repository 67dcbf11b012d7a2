"""Plain vision transformer with ImageNet weights: the encoder of the baseline "UniMatch ViT" (METHOD 8).

In: images B×H×W×3, normalised with the ImageNet statistics. An image that is not of the training size is
resized to it first, bilinearly, its shape included: the position table never changes. Out: `Features` on
the grid of patches: the tapped blocks' tokens after the final norm (`dtype`), and as `pooled` the class
token after the norm, whose length is not 1.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.resize import bilinear
from semivl_jax.models.transformer import (
    Remat,
    TappedEncoder,
    check_heads,
    check_taps,
    patch_embedding,
    with_class_token,
)
from semivl_jax.types import Features


class ImageNetViT(nn.Module):
    """ViT as timm builds it, named as big_vision's; defaults are ViT-B/16 with the published out_indices.

    grid             rows and columns of the position table: the training size is grid · patch_size
    out_indices             blocks whose tokens are returned, ascending
    stochastic_depth share of images that skip the last block's attention or MLP, falling linearly to 0
                     in the first
    """

    grid: tuple[int, int]
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    out_indices: tuple[int, ...] = (4, 11)
    stochastic_depth: float = 0.1
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode; with `train` and a "dropout" key, blocks are skipped.

        ValueError for out_indices that the tower does not have or not in order.
        """
        check_heads(self.num_heads, width=self.width)
        check_taps(self.out_indices, last=self.depth - 1, meaning="the last block")
        rows, cols = self.grid
        size = (rows * self.patch_size, cols * self.patch_size)
        image = bilinear(image, size, align_corners=False)
        embed = patch_embedding(self.width, self.patch_size, use_bias=True, dtype=self.dtype)
        tokens, tapped = TappedEncoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            out_indices=self.out_indices,
            drop_rate=self.stochastic_depth,
            eps=self.eps,
            dtype=self.dtype,
            remat=self.remat,
            name="Transformer",
        )(self._tokens(embed(image)), train=train)
        shape = (image.shape[0], rows, cols, self.width)
        maps = tuple(x[:, 1:].reshape(shape) for x in tapped)
        return Features(maps=maps, pooled=tokens[:, 0])

    def _tokens(self, patches: Array) -> Array:
        _, rows, cols, width = patches.shape
        cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, width))
        table_shape = (1, 1 + rows * cols, width)
        table = self.param("pos_embedding", nn.initializers.normal(0.02), table_shape)
        return with_class_token(jnp.asarray(cls), patches) + jnp.asarray(table, self.dtype)
