"""OpenAI CLIP checkpoints -> our towers.

In: the state dict of a ViT CLIP as NumPy arrays (float16 or float32), both towers or one of them.
Out: complete parameters of the tower that is given, float32. Strict: what is missing, unexpected or of
another shape is listed in one ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.models.position import resize_table, square_grid
from semivl_jax.models.text import TextTransformer
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.types import PyTree
from semivl_jax.weights.layout import Rule, attention, conv, convert, layer, norm
from semivl_jax.weights.tree import check

# Entries beside the towers' weights: the temperature, and what TorchScript archives carry along.
_OTHER = ("logit_scale", "input_resolution", "context_length", "vocab_size")


def import_vision(
    state: Mapping[str, np.ndarray], tower: VisionTransformer, *, source: str = "the CLIP weights"
) -> PyTree:
    """Parameters of the image tower, its position table resized to `tower.grid`."""
    visual = {
        name.removeprefix("visual."): array
        for name, array in state.items()
        if name.startswith("visual.")
    }
    params = _convert(visual, vision_rules(tower.num_heads), source)
    if "pos_embedding" in params:
        stored = square_grid(params["pos_embedding"].shape[1], source=source)
        params["pos_embedding"] = resize_table(params["pos_embedding"], stored, tower.grid)
    image = jnp.zeros((1, *(side * tower.patch_size for side in tower.grid), 3))
    check(params, _shapes(tower, image), source=source)
    return params


def import_text(
    state: Mapping[str, np.ndarray], tower: TextTransformer, *, source: str = "the CLIP weights"
) -> PyTree:
    """Parameters of the text tower."""
    rules = (
        Rule(r"token_embedding\.weight", "token_embedding/embedding"),
        Rule("positional_embedding", "pos_embedding", lambda table: table[None]),
        *_block_rules(tower.num_heads),
        *norm("ln_final", "Transformer/encoder_norm"),
        Rule("text_projection", "projection/kernel"),
    )
    textual = {
        name: array
        for name, array in state.items()
        if not name.startswith("visual.") and name not in _OTHER
    }
    params = _convert(textual, rules, source)
    check(params, _shapes(tower, jnp.zeros((1, tower.context_length), jnp.int32)), source=source)
    return params


def vision_rules(num_heads: int) -> tuple[Rule, ...]:
    """How the names and layouts of CLIP's image tower become ours."""
    return (
        Rule("class_embedding", "cls", lambda row: row[None, None]),
        Rule("positional_embedding", "pos_embedding", lambda table: table[None]),
        Rule(r"conv1\.weight", "embedding/kernel", conv),
        *norm("ln_pre", "pre_norm"),
        *_block_rules(num_heads),
        *norm("ln_post", "Transformer/encoder_norm"),
        Rule("proj", "projection/kernel"),
    )


def _block_rules(num_heads: int) -> tuple[Rule, ...]:
    old, new = r"transformer\.resblocks\.(\d+)", r"Transformer/encoderblock_\1"
    return (
        *norm(rf"{old}\.ln_1", f"{new}/LayerNorm_0"),
        *norm(rf"{old}\.ln_2", f"{new}/LayerNorm_1"),
        *attention(rf"{old}\.attn", f"{new}/MultiHeadDotProductAttention_0", num_heads=num_heads),
        *layer(rf"{old}\.mlp\.c_fc", f"{new}/MlpBlock_0/Dense_0"),
        *layer(rf"{old}\.mlp\.c_proj", f"{new}/MlpBlock_0/Dense_1"),
    )


def _convert(state: Mapping[str, np.ndarray], rules: Iterable[Rule], source: str) -> PyTree:
    wide = {name: np.asarray(array, np.float32) for name, array in state.items()}
    return convert(wide, rules, source=source)


def _shapes(tower: VisionTransformer | TextTransformer, example: jax.Array) -> PyTree:
    return jax.eval_shape(tower.init, jax.random.key(0), example)["params"]
