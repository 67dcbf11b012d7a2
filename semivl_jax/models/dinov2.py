"""DINOv2's vision transformer, the encoder of UniMatch V2.

In: images B×H×W×3, normalised with the ImageNet statistics. An image whose sides the patch size does not
divide is resized first, to the nearest sides that it does divide (bilinear, corners aligned), as UniMatch
V2 evaluates. Out: `Features` on the grid of patches: the tapped blocks' tokens after the final norm
(`dtype`), and as `pooled` the class token after the norm, whose length is not 1.

Source: DINOv2 (arXiv 2304.07193) and the public implementation of UniMatch V2 (arXiv 2410.10777).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.pos_embed import table_at
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

SIZES = {
    "small": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "base": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
}
"""Constructor arguments of the published models ViT-S/14 and ViT-B/14 (without register tokens)."""


class DinoV2(nn.Module):
    """ViT with LayerScale, named as big_vision's.

    grid   rows and columns of the position table: 37×37 as published (518 pixels); other grids resize it
    out_indices   blocks whose tokens are returned, ascending
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int = 14
    grid: tuple[int, int] = (37, 37)
    out_indices: tuple[int, ...] = (2, 5, 8, 11)
    layer_scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode images; `train` changes nothing: there is no dropout.

        ValueError for out_indices that the tower does not have or not in order.
        """
        check_heads(self.num_heads, width=self.width)
        check_taps(self.out_indices, last=self.depth - 1, meaning="the last block")
        size = tuple(self._whole_patches(side) for side in image.shape[1:3])
        image = bilinear(image, size, align_corners=True)
        embed = patch_embedding(self.width, self.patch_size, use_bias=True, dtype=self.dtype)
        patches = embed(image)
        tokens, tapped = TappedEncoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            out_indices=self.out_indices,
            layer_scale=self.layer_scale,
            dtype=self.dtype,
            remat=self.remat,
            name="Transformer",
        )(self._tokens(patches), train=train)
        maps = tuple(x[:, 1:].reshape(patches.shape) for x in tapped)
        return Features(maps=maps, pooled=tokens[:, 0])

    def _whole_patches(self, side: int) -> int:
        return max(int(side / self.patch_size + 0.5), 1) * self.patch_size

    def _tokens(self, patches: Array) -> Array:
        width = patches.shape[-1]
        cls = self.param("cls", nn.initializers.normal(1e-6), (1, 1, width))
        table_shape = (1, 1 + self.grid[0] * self.grid[1], width)
        table = jnp.asarray(self.param("pos_embedding", nn.initializers.normal(0.02), table_shape))
        table = table_at(table, self.grid, patches.shape[1:3], resizing="dinov2")
        return with_class_token(jnp.asarray(cls), patches) + table.astype(self.dtype)
