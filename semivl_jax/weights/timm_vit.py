"""timm's vision transformers -> `vit.IMAGENET`.

In: torch state dicts of NumPy arrays under timm's names, complete or of a few tensors only; the published
baseline puts "m." before them. Out: parameters in the names and layouts of `models.vit`. The
ImageNet classifier is known and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from semivl_jax.models.pos_embed import Grid, resize_table, square_grid
from semivl_jax.types import PyTree
from semivl_jax.weights.layout import Rule, attention_in, attention_out, conv, convert, layer, norm


def import_timm_vit(
    state: Mapping[str, np.ndarray],
    *,
    num_heads: int,
    grid: Grid | None = None,
    source: str = "the timm weights",
) -> PyTree:
    """Parameters of `vit.IMAGENET`.

    With `grid`, the position table of another square grid is resized to it as timm does it when a model
    is made for another image size. ValueError for unknown names, naming `source`.
    """
    names = {name.removeprefix("m."): array for name, array in state.items()}
    classifier = Rule(r"head\.(weight|bias)", None)
    params = convert(names, (*vit_rules(num_heads), classifier), source=source)
    if grid is not None and "pos_embedding" in params:
        table = params["pos_embedding"]
        stored = square_grid(table.shape[1], source=source)
        params["pos_embedding"] = resize_table(table, stored, grid)
    return params


def vit_rules(num_heads: int) -> tuple[Rule, ...]:
    """Names and layouts of timm's blocks, which DINOv2 shares."""
    old, new = r"blocks\.(\d+)", r"Transformer/encoderblock_\1"
    attention = f"{new}/MultiHeadDotProductAttention_0"
    return (
        Rule("cls_token", "cls"),
        Rule("pos_embed", "pos_embedding"),
        *layer(r"patch_embed\.proj", "embedding", conv),
        *norm(rf"{old}\.norm1", f"{new}/LayerNorm_0"),
        *norm(rf"{old}\.norm2", f"{new}/LayerNorm_1"),
        Rule(rf"{old}\.attn\.qkv\.weight", f"{attention}/*/kernel", attention_in(num_heads)),
        Rule(rf"{old}\.attn\.qkv\.bias", f"{attention}/*/bias", attention_in(num_heads)),
        Rule(rf"{old}\.attn\.proj\.weight", f"{attention}/out/kernel", attention_out(num_heads)),
        Rule(rf"{old}\.attn\.proj\.bias", f"{attention}/out/bias"),
        *layer(rf"{old}\.mlp\.fc1", f"{new}/MlpBlock_0/Dense_0"),
        *layer(rf"{old}\.mlp\.fc2", f"{new}/MlpBlock_0/Dense_1"),
        *norm("norm", "Transformer/encoder_norm"),
    )
