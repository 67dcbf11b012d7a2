"""The published image towers' state dicts -> our trees.

In: NumPy state dicts in torch's layout, named as the published checkpoints name a `backbone` or
`clip_encoder`, prefix removed. Out: parameters of `VisionTransformer`. Also for dicts of a few
tensors only. (Decoder, convolutional encoder and whole models: `weights.semivl_decoder`.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from semivl_jax.models.pos_embed import resize_table, square_grid
from semivl_jax.types import PyTree
from semivl_jax.weights.layout import (
    Rule,
    attention,
    conv,
    conv_1x1_as_linear,
    convert,
    layer,
    linear,
    norm,
)


def import_backbone(
    state: Mapping[str, np.ndarray],
    *,
    num_heads: int,
    grid: tuple[int, int] | None = None,
    source: str = "the published image tower",
) -> PyTree:
    """Parameters of a published tower.

    `num_heads` is not in the weights and must be told. With `grid`, a position table of another
    number of patches is resized to it. ValueError for unknown names, naming `source`.
    """
    params = convert(state, backbone_rules(num_heads), source=source)
    if grid is not None and "pos_embedding" in params:
        table = params["pos_embedding"]
        if table.shape[1] != 1 + grid[0] * grid[1]:
            stored = square_grid(table.shape[1], source=source)
            params["pos_embedding"] = resize_table(table, stored, grid)
    return params


def backbone_rules(num_heads: int) -> tuple[Rule, ...]:
    """How the published tower's names and layouts become ours."""
    old, new = r"layers\.(\d+)", r"Transformer/encoderblock_\1"
    return (
        Rule("cls_token", "cls"),
        Rule("pos_embed", "pos_embedding"),
        Rule(r"patch_embed\.projection\.weight", "embedding/kernel", conv),
        *norm("ln0", "pre_norm"),
        *norm(rf"{old}\.ln1", f"{new}/LayerNorm_0"),
        *norm(rf"{old}\.ln2", f"{new}/LayerNorm_1"),
        *attention(
            rf"{old}\.attn\.attn", f"{new}/MultiHeadDotProductAttention_0", num_heads=num_heads
        ),
        *layer(rf"{old}\.ffn\.layers\.0\.0", f"{new}/MlpBlock_0/Dense_0"),
        *layer(rf"{old}\.ffn\.layers\.1", f"{new}/MlpBlock_0/Dense_1"),
        *norm("ln1", "Transformer/encoder_norm"),
        Rule(r"proj\.weight", "projection/kernel", _projection),
    )


def _projection(weight: np.ndarray) -> np.ndarray:
    """A 1×1 convolution in a model's checkpoint, a plain matrix in the converted CLIP weights."""
    return conv_1x1_as_linear(weight) if weight.ndim == 4 else linear(weight)
