"""The vision transformer, and the published ones as constructor arguments.

In: images B×H×W×3 of any size, float, normalised (about −3 to 3), for towers with `symmetric_input` with the
ImageNet statistics. Out: `Features`:

    maps     one per entry of `out_indices`, B×y×x×C on the grid of patches: tokens of a block (`dtype`), or
             for the index `depth` of a tower with `out_dim` the dense embedding (float32, unit length)
    pooled   B×D: class token or map head after the final norm, or for a tower with `out_dim` the projected
             class token (float32, unit length)

Parameters are named as big_vision's. Sources: CLIP (arXiv 2103.00020) with MaskCLIP's dense output
(docs/semivl.md 1), ZegCLIP (there 8 and 9.20), timm's ViT (there 8), DINOv2 (arXiv 2304.07193) as UniMatch V2
(arXiv 2410.10777) uses it, DINOv3 (arXiv 2508.10104), big_vision's AugReg and SigLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from semivl_jax.models import rope
from semivl_jax.models.image_normalization import symmetric
from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.pos_embed import Grid, Resizing, resize_table, stored_grid
from semivl_jax.models.resize import bilinear
from semivl_jax.models.transformer import Encoder, MapHead, Prompts, Remat, layer_norm
from semivl_jax.types import Features

_B16 = {"patch_size": 16, "width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072}

CLIP: dict[str, Any] = {
    "patch_bias": False,
    "pre_norm": True,
    "value_path": True,
    "norm_maps": False,
}
"""CLIP with dense output from the value path. Sizes, `quick_gelu` and `eps` come with the weights."""
PROMPTED_CLIP: dict[str, Any] = {
    "fit": "crop",
    "patch_bias": False,
    "class_token_scale": 2.0,
    "table_resizing": "bilinear",
    "pre_norm": True,
    "quick_gelu": True,
    "eps": 1e-5,
    "norm_maps": False,
    "prompts": 10,
    "prompt_depth": 11,
}
"""ZegCLIP's tower, always with CLIP's own activation and epsilon."""
IMAGENET: dict[str, Any] = {"fit": "resize_to_grid", "drop_path": 0.1}
"""timm's ViT, the encoder of the baseline "UniMatch ViT"."""
DINOV2: dict[str, Any] = {
    "grid": (37, 37),
    "fit": "resize",
    "table_resizing": "dinov2",
    "layer_scale": 1.0,
    "via_square": False,
}
"""DINOv2 without register tokens; the position table keeps its published size whatever the crop."""
DINOV3: dict[str, Any] = {
    "grid": (0, 0),
    "fit": "resize",
    "rope": True,
    "registers": 4,
    "key_bias": False,
    "layer_scale": 1e-5,
    "eps": 1e-5,
    "via_square": False,
}
"""DINOv3: rotary positions instead of a table."""
AUGREG: dict[str, Any] = {"symmetric_input": True, "class_position": False, "tanh_gelu": True}
"""big_vision's ViT with a class token."""
SIGLIP: dict[str, Any] = {**AUGREG, "class_token": False, "map_head": True}
"""big_vision's ViT with a map head, the image tower of SigLIP."""

DENSE_SIGLIP: dict[str, Any] = {**SIGLIP, "norm_maps": False, "dense_pooling": True}
"""The same with dense output: the map head pools every patch by itself, as CLIP's value path does."""

IMAGENET_B16 = {**IMAGENET, **_B16}
DINOV2_S14 = {**DINOV2, **_B16, "patch_size": 14, "width": 384, "num_heads": 6, "mlp_dim": 1536}
DINOV2_B14 = {**DINOV2, **_B16, "patch_size": 14}
DINOV3_S16 = {**DINOV3, **_B16, "width": 384, "num_heads": 6, "mlp_dim": 1536}
DINOV3_S16_PLUS = {**DINOV3_S16, "swiglu": True}
DINOV3_B16 = {**DINOV3, **_B16}
DINOV3_L16 = {**DINOV3, **_B16, "width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096}
AUGREG_B16 = {**AUGREG, **_B16}
SIGLIP_B16 = {**SIGLIP, **_B16}

TINY = {"patch_size": 8, "width": 16, "depth": 4, "num_heads": 2, "mlp_dim": 32}
"""Sizes that make a small tower of any of these."""


def dense_kind(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`CLIP` or `DENSE_SIGLIP`, for the sizes that come with the weights of a vision-language model."""
    return DENSE_SIGLIP if sizes.get("map_head") else CLIP


class VisionTransformer(nn.Module):
    """A vision transformer of any of the kinds above; the defaults are those of a plain ViT.

    grid               rows and columns of the position table, not used with `rope`
    out_indices        maps to return, ascending: i < depth is block i; depth is the dense embedding of a
                       tower with `out_dim`

    fit                images whose sides are no multiples of the patch: "pad" with zeros right and below,
                       "crop" the rest, "resize" to the nearest multiples (bilinear, corners aligned), or
                       "resize_to_grid": to grid · patch_size pixels (bilinear)
    symmetric_input    the network sees pixels in [−1, 1] instead of ImageNet-normalised ones
    patch_bias         the patch embedding has a bias
    class_token        there is a class token, multiplied with `class_token_scale`
    class_position     the position table has a row for the class token
    table_resizing     how the position table is resized, see `pos_embed`
    rope               rotary positions instead of a table, see `models.rope`
    registers          trained tokens between class token and patches
    pre_norm           there is a norm before the first block
    prompts            trained tokens (0: none) for the first block, and for `prompt_depth` blocks after it

    quick_gelu, tanh_gelu, swiglu, key_bias, layer_scale, drop_path, eps, remat   see `Encoder`

    value_path         maps are value paths of the blocks instead of their tokens
    norm_maps          maps pass the final norm
    map_head           `pooled` comes from attention pooling
    dense_pooling      the dense embedding is the map head of every patch alone; `pooled` has unit length too
    out_dim            size of the projection into the space of texts; None: none

    via_square         not used here: whether a segmenter resizes logits to the square of the training crop
                       before the size of the image
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    grid: tuple[int, int]
    out_indices: tuple[int, ...]
    fit: Literal["pad", "crop", "resize", "resize_to_grid"] = "pad"
    symmetric_input: bool = False
    patch_bias: bool = True
    class_token: bool = True
    class_token_scale: float = 1.0
    class_position: bool = True
    table_resizing: Resizing = "bicubic"
    rope: bool = False
    registers: int = 0
    pre_norm: bool = False
    prompts: int = 0
    prompt_depth: int = 0
    prompt_dropout: float = 0.1
    quick_gelu: bool = False
    tanh_gelu: bool = False
    swiglu: bool = False
    key_bias: bool = True
    layer_scale: float | None = None
    drop_path: float = 0.0
    eps: float = 1e-6
    value_path: bool = False
    norm_maps: bool = True
    map_head: bool = False
    dense_pooling: bool = False
    out_dim: int | None = None
    via_square: bool = True
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @property
    def class_rows(self) -> int:
        """Rows of the position table before those of the grid."""
        return int(self.class_token and self.class_position)

    @property
    def padding_patch(self) -> int | None:
        """The patch size if zeros on the right and below may complete patches without effect, else None."""
        return self.patch_size if self.fit == "pad" and not self.symmetric_input else None

    def check_indices(self, *, name: str = "out_indices") -> None:
        """ValueError unless `out_indices` ascend and exist; `name` is for the message."""
        if self.out_dim is None and not self.dense_pooling:
            last, meaning = self.depth - 1, "the last block"
        else:
            last, meaning = self.depth, "the dense embedding"
        chosen = list(self.out_indices)
        if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] > last:
            raise ValueError(
                f"{name} = {self.out_indices}: choose one or more numbers from 0 to {last} ({meaning}), in "
                "ascending order"
            )

    def resized_table(
        self, table: Float[np.ndarray, "1 t c"], *, source: str, stored: Grid | None = None
    ) -> Float32[np.ndarray, "1 u c"]:
        """The position table for this tower's grid, from one of the grid `stored` (None: unknown).

        ValueError, naming `source`, if the grid of the stored table cannot be derived from its rows.
        """
        rows = self.class_rows
        if stored is None:
            stored = stored_grid(table.shape[1], like=self.grid, class_rows=rows, source=source)
        resizing = self.table_resizing
        resized = resize_table(table, stored, self.grid, resizing=resizing, class_rows=rows)
        return np.asarray(resized, np.float32)

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Encode images; `train` enables stochastic depth and dropout of prompts (with a "dropout" key).

        ValueError for options that do not go together, and for an image that has no whole patch to crop to.
        """
        self._check(image.shape[1:3])
        patches = self._patches(image)
        batch, rows, cols, _ = patches.shape
        count, last = rows * cols, self.depth - 1
        tokens, maps = self._encoder()(
            self._tokens(patches),
            prompts=self._prompts(),
            rope=self._rotations(rows, cols),
            train=train,
        )
        maps = {i: x[:, -count:] for i, x in maps.items()}
        if self.map_head:
            head = MapHead(
                self.num_heads, self.mlp_dim, self.tanh_gelu, self.eps, self.dtype, name="MAPHead_0"
            )
            pooled = head(tokens)
            if self.dense_pooling:
                alone = head(tokens[:, -count:].reshape(batch * count, 1, -1))
                maps[self.depth] = l2_normalize(alone.reshape(batch, count, -1))
                pooled = l2_normalize(pooled)
        else:
            pooled = tokens[:, 0]
        if self.out_dim is not None:
            # The dense embedding is always computed; the compiler drops it where nothing uses it.
            project = nn.Dense(self.out_dim, use_bias=False, dtype=self.dtype, name="projection")
            dense = maps[last] if self.value_path else tokens[:, -count:]
            maps[self.depth] = l2_normalize(project(dense))
            pooled = l2_normalize(project(pooled))
        return Features(
            maps=tuple(maps[i].reshape(batch, rows, cols, -1) for i in self.out_indices),
            pooled=pooled,
        )

    def _encoder(self) -> Encoder:
        """The blocks; the last map is always returned where the dense embedding needs its value path."""
        blocks = {i for i in self.out_indices if i < self.depth}
        return Encoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            out_indices=tuple(sorted(blocks | ({self.depth - 1} if self.value_path else set()))),
            value_path=self.value_path,
            norm_maps=self.norm_maps,
            quick_gelu=self.quick_gelu,
            tanh_gelu=self.tanh_gelu,
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            eps=self.eps,
            swiglu=self.swiglu,
            key_bias=self.key_bias,
            dtype=self.dtype,
            remat=self.remat,
            name="Transformer",
        )

    def _prompts(self) -> Prompts | None:
        if not self.prompts:
            return None
        return Prompts(
            self.prompts,
            self.prompt_depth,
            self.width,
            self.patch_size,
            self.prompt_dropout,
            self.dtype,
            name="prompt",
        )

    def _rotations(self, rows: int, cols: int) -> rope.Table | None:
        """Of rotary positions."""
        if not self.rope:
            return None
        return rope.table(rope.coordinates((rows, cols)), self.width // self.num_heads)

    def _check(self, size: tuple[int, int]) -> None:
        self.check_indices()
        if not (self.class_token or self.map_head):
            raise ValueError(
                "class_token=False and map_head=False leave nothing to pool with: choose one"
            )
        if self.dense_pooling and not self.map_head:
            raise ValueError("dense_pooling=True needs map_head=True: choose both or none")
        if self.prompts and not 1 <= self.prompt_depth < self.depth:
            raise ValueError(
                f"prompt_depth={self.prompt_depth} of a tower with {self.depth} blocks: choose 1 to "
                f"{self.depth - 1}"
            )
        if self.fit == "crop" and min(size) < self.patch_size:
            raise ValueError(
                f"an image of {size[0]}×{size[1]} has no whole patch of {self.patch_size} pixels: feed a "
                "larger one"
            )

    def _patches(self, image: Array) -> Array:
        """Embedded patches B×y×x×C."""
        patch, size = self.patch_size, image.shape[1:3]
        if self.symmetric_input:
            image = symmetric(image)
        if self.fit == "pad":
            below, right = (-side % patch for side in size)
            image = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)))
        elif self.fit == "resize":
            whole = tuple(max(int(side / patch + 0.5), 1) * patch for side in size)
            image = bilinear(image, whole, align_corners=True)
        elif self.fit == "resize_to_grid":
            whole = (self.grid[0] * patch, self.grid[1] * patch)
            image = bilinear(image, whole, align_corners=False)
        embed = nn.Conv(
            self.width,
            (patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=self.patch_bias,
            dtype=self.dtype,
            name="embedding",
        )
        return embed(image.astype(self.dtype))

    def _tokens(self, patches: Array) -> Array:
        """Class token, registers and patches, B×T×C, with their positions (rotary ones come later)."""
        batch, rows, cols, width = patches.shape
        # Made before the class token: the order of the parameters decides their random values.
        positions = None if self.rope else self._positions(rows, cols, width)
        x = patches.reshape(batch, rows * cols, width)
        if self.class_token:
            cls = jnp.asarray(self.param("cls", nn.initializers.normal(0.02), (1, 1, width)))
            first = jnp.asarray(self.class_token_scale * cls, self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, width)), x], axis=1)
        if positions is not None:
            x = x + positions
        if self.registers:
            shape = (1, self.registers, width)
            extra = self.param("registers", nn.initializers.normal(0.02), shape)
            extra = jnp.broadcast_to(jnp.asarray(extra, self.dtype), (batch, *shape[1:]))
            x = jnp.concatenate([x[:, :1], extra, x[:, 1:]], axis=1)
        return layer_norm("pre_norm", eps=self.eps, dtype=self.dtype)(x) if self.pre_norm else x

    def _positions(self, rows: int, cols: int, width: int) -> Array:
        """The position table for a grid, with a row for the class token."""
        shape = (1, self.class_rows + self.grid[0] * self.grid[1], width)
        table = jnp.asarray(self.param("pos_embedding", nn.initializers.normal(width**-0.5), shape))
        table = resize_table(
            table,
            self.grid,
            (rows, cols),
            resizing=self.table_resizing,
            class_rows=self.class_rows,
        ).astype(self.dtype)
        if self.class_token and not self.class_position:
            table = jnp.pad(table, ((0, 0), (1, 0), (0, 0)))
        return table
