"""CLIP with vision transformers, as OpenAI and Hugging Face publish it -> our two towers.

In: the state dict as NumPy arrays (float16 or float32). Out: `files.Weights` of the format CLIP, arrays in
the dtype that they came in; or, from `import_…`, float32 parameters of a tower whose sizes are known. Strict:
what is missing, unexpected or of another shape is listed in one ValueError.

Sizes are read from the shapes. The number of attention heads is not in them: it is in the config.json of
Hugging Face, else a head has 64 channels, as in every published CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.models.pos_embed import resize_table, square_grid
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.types import PyTree
from semivl_jax.weights import files
from semivl_jax.weights.layout import (
    Layout,
    Rule,
    attention,
    conv,
    count,
    layer,
    linear,
    norm,
    num_heads,
    placed,
    separate_attention,
    shape,
    translate,
)

State = Mapping[str, np.ndarray]

# Entries beside the towers' weights: what TorchScript archives and Hugging Face's modules carry along.
_DROPPED = (
    Rule("input_resolution|context_length|vocab_size", None),
    Rule(r"(text|vision)_model\.embeddings\.position_ids", None),
)
_LOGIT_SCALE = Rule("logit_scale", "logit_scale")

# The activations that towers can have, by Hugging Face's names.
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}


def from_openai(
    state: State,
    *,
    source: str,
    image_heads: int | None = None,
    text_heads: int | None = None,
    as_trained: bool = False,
) -> files.Weights:
    """Both towers of one of OpenAI's files: its TorchScript archive or a plain state dict.

    Heads that are None are those of 64 channels. The image tower gets SemiVL's exact GELU and LayerNorm
    epsilon 1e-6 (METHOD 1.4) unless it is wanted `as_trained`, with QuickGELU and 1e-5.
    """
    if any(name.startswith(("visual.layer1.", "visual.attnpool.")) for name in state):
        raise ValueError(
            f"{source} is a CLIP with a residual network; convert one with a vision transformer: "
            "ViT-B/16, ViT-B/32 or ViT-L/14"
        )
    width, _, patch, _ = shape(state, "visual.conv1.weight", 4, source=source)
    block = r"transformer\.resblocks\.(\d+)\."
    hidden = shape(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2, source=source)[0]
    image = {
        "patch_size": patch,
        "width": width,
        "depth": count(state, r"visual\." + block),
        "num_heads": num_heads(width, image_heads, "image_heads", source=source),
        "mlp_dim": hidden,
        "out_dim": shape(state, "visual.proj", 2, source=source)[1],
    }
    vocabulary, width = shape(state, "token_embedding.weight", 2, source=source)
    text = {
        "vocab_size": vocabulary,
        "width": width,
        "depth": count(state, block),
        "num_heads": num_heads(width, text_heads, "text_heads", source=source),
        "out_dim": shape(state, "text_projection", 2, source=source)[1],
        "context_length": shape(state, "positional_embedding", 2, source=source)[0],
    }
    trained = {"quick_gelu": True, "eps": 1e-5}
    rules = (
        *placed(vision_rules(image["num_heads"]), prefix="visual.", branch="image"),
        *placed(_text_rules(text["num_heads"]), prefix="", branch="text"),
    )
    sizes = {"image": image | (trained if as_trained else {}), "text": text}
    return _both(state, rules, sizes, kind="openai_clip", trained=trained, source=source)


def from_huggingface(
    state: State,
    config: Mapping[str, Any],
    *,
    source: str,
    image_heads: int | None = None,
    text_heads: int | None = None,
    as_trained: bool = False,
) -> files.Weights:
    """Both towers of a CLIP repository of Hugging Face; `config` is its config.json ({}: OpenAI's facts).

    As `from_openai`; the config says heads, activations and epsilons where the options do not.
    """
    facts = {part: _facts(config, f"{part}_config", source) for part in ("vision", "text")}
    told = {
        "vision": image_heads or facts["vision"]["heads"],
        "text": text_heads or facts["text"]["heads"],
    }
    old = "vision_model.embeddings"
    width, _, patch, _ = shape(state, f"{old}.patch_embedding.weight", 4, source=source)
    hidden = shape(state, "vision_model.encoder.layers.0.mlp.fc1.weight", 2, source=source)[0]
    trained = facts["vision"]["trained"]
    image = {
        "patch_size": patch,
        "width": width,
        "depth": count(state, r"vision_model\.encoder\.layers\.(\d+)\."),
        "num_heads": num_heads(width, told["vision"], "image_heads", source=source),
        "mlp_dim": hidden,
        "out_dim": shape(state, "visual_projection.weight", 2, source=source)[0],
    }
    old = "text_model.embeddings"
    vocabulary, width = shape(state, f"{old}.token_embedding.weight", 2, source=source)
    text = {
        "vocab_size": vocabulary,
        "width": width,
        "depth": count(state, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_heads": num_heads(width, told["text"], "text_heads", source=source),
        "out_dim": shape(state, "text_projection.weight", 2, source=source)[0],
        "context_length": shape(state, f"{old}.position_embedding.weight", 2, source=source)[0],
        **facts["text"]["trained"],
    }
    rules = (
        *placed(_hf_image_rules(image["num_heads"]), prefix="", branch="image"),
        *placed(_hf_text_rules(text["num_heads"]), prefix="", branch="text"),
    )
    sizes = {"image": image | (trained if as_trained else {}), "text": text}
    return _both(state, rules, sizes, kind="huggingface_clip", trained=trained, source=source)


def import_vision(
    state: State, tower: VisionTransformer, *, source: str = "the CLIP weights"
) -> PyTree:
    """Parameters of OpenAI's image tower, float32, the position table resized to `tower.grid`."""
    visual = {name: np.float32(a) for name, a in state.items() if name.startswith("visual.")}
    rules = placed(vision_rules(tower.num_heads), prefix="visual.", branch="image")
    translation = translate(visual, rules, source=source)
    params = translation.tree.get("image", {})
    if "pos_embedding" in params:
        stored = square_grid(params["pos_embedding"].shape[1], source=source)
        params["pos_embedding"] = resize_table(params["pos_embedding"], stored, tower.grid)
    translation.check({"image": _image_shapes(tower)}, source=source)
    return params


def import_text(
    state: State, tower: TextTransformer, *, source: str = "the CLIP weights"
) -> PyTree:
    """Parameters of OpenAI's text tower, float32."""
    textual = {name: np.float32(a) for name, a in state.items() if not name.startswith("visual.")}
    rules = (
        Rule("logit_scale", None),
        *_DROPPED,
        *placed(_text_rules(tower.num_heads), prefix="", branch="text"),
    )
    translation = translate(textual, rules, source=source)
    translation.check({"text": text_shapes(tower)}, source=source)
    return translation.tree["text"]


def image_shapes(sizes: Mapping[str, Any], table_rows: int, *, source: str) -> PyTree:
    """Shapes of an image tower of these sizes whose position table has so many rows."""
    grid = square_grid(table_rows, source=source)
    return _image_shapes(
        VisionTransformer(**CLIP, **sizes, grid=grid, out_indices=(sizes["depth"],))
    )


def text_shapes(tower: TextTransformer) -> PyTree:
    """Shapes of a text tower's parameters."""
    ids = jnp.zeros((1, tower.context_length), jnp.int32)
    return jax.eval_shape(tower.init, jax.random.key(0), ids)["params"]


def _image_shapes(tower: VisionTransformer) -> PyTree:
    image = jnp.zeros((1, *(side * tower.patch_size for side in tower.grid), 3))
    return jax.eval_shape(tower.init, jax.random.key(0), image)["params"]


def _both(
    state: State,
    rules: tuple[Rule, ...],
    sizes: dict[str, dict[str, Any]],
    *,
    kind: str,
    trained: dict[str, Any],
    source: str,
) -> files.Weights:
    """The weights, after making sure that they are exactly towers of these sizes."""
    dims = {part: sizes[part]["out_dim"] for part in sizes}
    if dims["image"] != dims["text"]:
        raise ValueError(
            f"{source}: images are embedded in {dims['image']} dimensions, words in {dims['text']}; these "
            "are not the towers of one CLIP"
        )
    translation = translate(state, (*_DROPPED, _LOGIT_SCALE, *rules), source=source)
    tree = translation.tree
    table = tree.get("image", {}).get("pos_embedding")
    rows = 2 if table is None else table.shape[1]
    like = {
        "image": image_shapes(sizes["image"], rows, source=source),
        "text": text_shapes(TextTransformer(**sizes["text"])),
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }
    translation.check(like, source=source)
    tree = {part: tree[part] for part in like}
    tree["logit_scale"] = np.asarray(np.exp(np.float32(tree["logit_scale"])))
    activation = "QuickGELU" if trained["quick_gelu"] else "GELU"
    notes = {"trained_with": f"{activation}, LayerNorm epsilon {trained['eps']:g}"}
    return files.Weights(format=files.CLIP, kind=kind, sizes=sizes, tree=tree, notes=notes)


def _facts(config: Mapping[str, Any], part: str, source: str) -> dict[str, Any]:
    """Heads, activation and epsilon that a config.json states for one tower; OpenAI's by default."""
    settings = config.get(part, {})
    if not isinstance(settings, Mapping):
        raise ValueError(f"{source}: config.json says no settings under {part}; fetch it again")
    activation = settings.get("hidden_act", "quick_gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{source}: config.json says {part}.hidden_act = {activation!r}, which the towers do not have; "
            f"they have {' and '.join(_ACTIVATIONS)}"
        )
    eps, heads = settings.get("layer_norm_eps", 1e-5), settings.get("num_attention_heads")
    if not isinstance(eps, float) or not (heads is None or isinstance(heads, int)):
        raise ValueError(
            f"{source}: config.json says {part}.layer_norm_eps = {eps!r} and num_attention_heads = "
            f"{heads!r}, which are no numbers; fetch it again"
        )
    return {"heads": heads, "trained": {"quick_gelu": _ACTIVATIONS[activation], "eps": eps}}


def vision_rules(heads: int) -> tuple[Rule, ...]:
    """How the names and layouts of OpenAI's image tower become ours."""
    return (
        Rule("class_embedding", "cls", _first_axes(2)),
        Rule("positional_embedding", "pos_embedding", _first_axes(1)),
        Rule(r"conv1\.weight", "embedding/kernel", conv),
        *norm("ln_pre", "pre_norm"),
        *_block_rules(heads),
        *norm("ln_post", "Transformer/encoder_norm"),
        Rule("proj", "projection/kernel"),
    )


def _text_rules(heads: int) -> tuple[Rule, ...]:
    return (
        Rule(r"token_embedding\.weight", "token_embedding/embedding"),
        Rule("positional_embedding", "pos_embedding", _first_axes(1)),
        *_block_rules(heads),
        *norm("ln_final", "Transformer/encoder_norm"),
        Rule("text_projection", "projection/kernel"),
    )


def _block_rules(heads: int) -> tuple[Rule, ...]:
    old, new = r"transformer\.resblocks\.(\d+)", r"Transformer/encoderblock_\1"
    return (
        *norm(rf"{old}\.ln_1", f"{new}/LayerNorm_0"),
        *norm(rf"{old}\.ln_2", f"{new}/LayerNorm_1"),
        *attention(rf"{old}\.attn", f"{new}/MultiHeadDotProductAttention_0", num_heads=heads),
        *layer(rf"{old}\.mlp\.c_fc", f"{new}/MlpBlock_0/Dense_0"),
        *layer(rf"{old}\.mlp\.c_proj", f"{new}/MlpBlock_0/Dense_1"),
    )


def _hf_image_rules(heads: int) -> tuple[Rule, ...]:
    old = r"vision_model"
    return (
        Rule(rf"{old}\.embeddings\.class_embedding", "cls", _first_axes(2)),
        Rule(rf"{old}\.embeddings\.position_embedding\.weight", "pos_embedding", _first_axes(1)),
        Rule(rf"{old}\.embeddings\.patch_embedding\.weight", "embedding/kernel", conv),
        *norm(rf"{old}\.pre_layrnorm", "pre_norm"),  # the misspelling is the published name
        *_hf_block_rules(old, heads),
        *norm(rf"{old}\.post_layernorm", "Transformer/encoder_norm"),
        Rule(r"visual_projection\.weight", "projection/kernel", linear),
    )


def _hf_text_rules(heads: int) -> tuple[Rule, ...]:
    old = r"text_model"
    return (
        Rule(rf"{old}\.embeddings\.token_embedding\.weight", "token_embedding/embedding"),
        Rule(rf"{old}\.embeddings\.position_embedding\.weight", "pos_embedding", _first_axes(1)),
        *_hf_block_rules(old, heads),
        *norm(rf"{old}\.final_layer_norm", "Transformer/encoder_norm"),
        Rule(r"text_projection\.weight", "projection/kernel", linear),
    )


def _hf_block_rules(tower: str, heads: int) -> tuple[Rule, ...]:
    old, new = rf"{tower}\.encoder\.layers\.(\d+)", r"Transformer/encoderblock_\1"
    attention_path = f"{new}/MultiHeadDotProductAttention_0"
    return (
        *norm(rf"{old}\.layer_norm1", f"{new}/LayerNorm_0"),
        *norm(rf"{old}\.layer_norm2", f"{new}/LayerNorm_1"),
        *separate_attention(rf"{old}\.self_attn", attention_path, num_heads=heads),
        *layer(rf"{old}\.mlp\.fc1", f"{new}/MlpBlock_0/Dense_0"),
        *layer(rf"{old}\.mlp\.fc2", f"{new}/MlpBlock_0/Dense_1"),
    )


def _first_axes(number: int) -> Layout:
    """Axes of length 1 in front, where the modules keep a batch."""
    return lambda array: array[(None,) * number]
