"""Tables of published transformers: CLIP, timm's ViT, DINOv2, DINOv3, SigLIP; image and text towers.

One `Layout` each. Rules drop what is not needed (classifiers of ImageNet, mask tokens). Convolutional
networks are in `conv_layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from semivl_jax.models import vit
from semivl_jax.models.clip_text import text_tower
from semivl_jax.weights.layout import POSITIONS, Layout, Options, Sizes, Tensors, token_ids
from semivl_jax.weights.rename import (
    CLASSIFIER,
    Rule,
    Rules,
    add_axes,
    add_axis,
    attention,
    conv,
    layer,
    linear,
    norm,
    pointwise,
    split_query_value,
    transformer_blocks,
)

_PATCHES = "width _ patch_size _"
_VOCABULARY = "vocab_size width"
_BLOCK = "Transformer/encoderblock_#"
_HEADS = f"{_BLOCK}/MultiHeadDotProductAttention_0"


def _vit(kind: Mapping[str, Any]) -> Callable[[Sizes, int], nn.Module]:
    """A vision transformer of `models.vit`; its last map is the dense embedding or the last block."""

    def module(sizes: Sizes, maps: int) -> nn.Module:
        last = sizes["depth"] if "out_dim" in sizes else sizes["depth"] - 1
        indices = (*range(maps - 1), last)
        return vit.VisionTransformer(**{**kind, **sizes}, out_indices=indices)

    return module


def _text_tower(sizes: Sizes, _: int) -> nn.Module:
    return text_tower(sizes)


# --- CLIP as OpenAI names it, and ZegCLIP, which adds prompts ---


def _openai_blocks(hidden: str) -> Rules:
    return transformer_blocks(
        "transformer.resblocks.#.",
        norms=("ln_1", "ln_2"),
        mlp=("mlp.c_fc", "mlp.c_proj"),
        qkv="attn.in_proj_",
        out="attn.out_proj",
        hidden=hidden,
    )


_OPENAI_IMAGE: Rules = (
    Rule("class_embedding", "cls", add_axes),
    Rule("positional_embedding", "pos_embedding", add_axis, f"{POSITIONS} _"),
    Rule("conv1.weight", "embedding/kernel", conv, _PATCHES),
    *norm("ln_pre", "pre_norm"),
    *_openai_blocks("mlp_dim _"),
    *norm("ln_post", "Transformer/encoder_norm"),
    Rule("proj", "projection/kernel", axes="_ out_dim"),
)
_RESIDUAL = (
    "is a CLIP with a residual network; convert one with a vision transformer: ViT-B/16, ViT-B/32 or "
    "ViT-L/14"
)
OPENAI_IMAGE = Layout(
    rules=_OPENAI_IMAGE,
    module=_vit(vit.CLIP),
    heads="image_heads",
    refused={"layer1.*": _RESIDUAL, "attnpool.*": _RESIDUAL},
)
OPENAI_TEXT = Layout(
    rules=(
        Rule("token_embedding.weight", "token_embedding/embedding", axes=_VOCABULARY),
        Rule("positional_embedding", "pos_embedding", add_axis, "context_length _"),
        *_openai_blocks(""),
        *norm("ln_final", "Transformer/encoder_norm"),
        Rule("text_projection", "projection/kernel", axes="_ out_dim"),
    ),
    module=_text_tower,
    heads="text_heads",
    example=token_ids,
)
ZEGCLIP_IMAGE = Layout(
    rules=(
        *_OPENAI_IMAGE,
        Rule("prompt_embeddings", "prompt/embedding", axes="_ prompts _"),
        Rule("deep_prompt_embeddings", "prompt/deep_embedding", axes="prompt_depth _ _"),
        *layer("prompt_proj", "prompt/projection"),
        *norm("prompt_norm", "prompt/norm"),
    ),
    module=_vit(vit.PROMPTED_CLIP),
    heads="image_heads",
)

# --- CLIP as Hugging Face names it ---


def _huggingface_blocks(tower: str, hidden: str, encoder: str = "Transformer") -> Rules:
    return transformer_blocks(
        f"{tower}.encoder.layers.#.",
        norms=("layer_norm1", "layer_norm2"),
        mlp=("mlp.fc1", "mlp.fc2"),
        qkv=("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        out="self_attn.out_proj",
        hidden=hidden,
        encoder=encoder,
    )


_IMAGE, _TEXT = "vision_model.embeddings", "text_model.embeddings"
HUGGINGFACE_IMAGE = Layout(
    rules=(
        Rule(f"{_IMAGE}.class_embedding", "cls", add_axes),
        Rule(f"{_IMAGE}.position_embedding.weight", "pos_embedding", add_axis, f"{POSITIONS} _"),
        Rule(f"{_IMAGE}.patch_embedding.weight", "embedding/kernel", conv, _PATCHES),
        *norm("vision_model.pre_layrnorm", "pre_norm"),  # the misspelling is the published name
        *_huggingface_blocks("vision_model", "mlp_dim _"),
        *norm("vision_model.post_layernorm", "Transformer/encoder_norm"),
        Rule("visual_projection.weight", "projection/kernel", linear, "out_dim _"),
    ),
    module=_vit(vit.CLIP),
    heads="image_heads",
)
HUGGINGFACE_TEXT = Layout(
    rules=(
        Rule(f"{_TEXT}.token_embedding.weight", "token_embedding/embedding", axes=_VOCABULARY),
        Rule(f"{_TEXT}.position_embedding.weight", "pos_embedding", add_axis, "context_length _"),
        *_huggingface_blocks("text_model", ""),
        *norm("text_model.final_layer_norm", "Transformer/encoder_norm"),
        Rule("text_projection.weight", "projection/kernel", linear, "out_dim _"),
    ),
    module=_text_tower,
    heads="text_heads",
    example=token_ids,
)

# --- CLIP's image tower as SemiVL names it ---

SEMIVL_IMAGE = Layout(
    rules=(
        Rule("cls_token", "cls"),
        Rule("pos_embed", "pos_embedding", axes=f"_ {POSITIONS} _"),
        Rule("patch_embed.projection.weight", "embedding/kernel", conv, _PATCHES),
        *norm("ln0", "pre_norm"),
        *transformer_blocks(
            "layers.#.",
            norms=("ln1", "ln2"),
            mlp=("ffn.layers.0.0", "ffn.layers.1"),
            qkv="attn.attn.in_proj_",
            out="attn.attn.out_proj",
        ),
        *norm("ln1", "Transformer/encoder_norm"),
        Rule("proj.weight", "projection/kernel", pointwise, "out_dim _ _ _"),
    ),
    module=_vit(vit.CLIP),
    heads="image_heads",
)

# --- timm's ViT, and DINOv2, which shares its names ---


def _timm(hidden: str) -> Rules:
    """Without positions."""
    return (
        Rule("cls_token", "cls"),
        *layer("patch_embed.proj", "embedding", conv, axes=_PATCHES),
        *transformer_blocks(
            "blocks.#.",
            norms=("norm1", "norm2"),
            mlp=("mlp.fc1", "mlp.fc2"),
            qkv="attn.qkv.",
            out="attn.proj",
            hidden=hidden,
        ),
        *norm("norm", "Transformer/encoder_norm"),
    )


def _layer_scale(attention: str, mlp: str) -> Rules:
    return Rule(attention, f"{_BLOCK}/LayerScale_0"), Rule(mlp, f"{_BLOCK}/LayerScale_1")


_TIMM: Rules = (
    Rule("pos_embed", "pos_embedding", axes=f"_ {POSITIONS} _"),
    *_timm("mlp_dim _"),
)
TIMM_VIT = Layout(rules=(*_TIMM, *CLASSIFIER), module=_vit(vit.IMAGENET), heads="image_heads")
DINOV2 = Layout(
    rules=(
        *_TIMM,
        *_layer_scale("blocks.#.ls1.gamma", "blocks.#.ls2.gamma"),
        Rule("mask_token", None),
    ),
    module=_vit(vit.DINOV2),
    heads="image_heads",
    refused={
        "register_tokens": "is a DINOv2 with register tokens; convert one without, such as "
        "dinov2_vitb14_pretrain.pth",
        "blocks.#.mlp.w12.weight": "is the giant DINOv2, whose blocks have SwiGLU layers; the "
        "backbones here are the small and the base one: dinov2_vits14_pretrain.pth and "
        "dinov2_vitb14_pretrain.pth",
    },
)

# --- DINOv3 as facebookresearch and as transformers name it ---


def _dinov3_sizes(tensors: Tensors, sizes: Sizes, options: Options) -> Sizes:
    """Attention heads follow from the periods of the rotary positions: there is one for four channels."""
    swiglu = tensors.any("blocks.0.mlp.w1.weight")
    hidden = "blocks.0.mlp.w1.weight" if swiglu else "blocks.0.mlp.fc1.weight"
    periods = tensors.axis("rope_embed.periods", "periods")
    return {
        "depth": tensors.count("blocks.#.norm1.weight"),
        "mlp_dim": tensors.axis(hidden, "mlp_dim _"),
        "num_heads": options.image_heads or sizes["width"] // (4 * periods),
        "swiglu": swiglu,
    }


DINOV3 = Layout(
    rules=(
        # Before those of timm, which also have the bias of keys
        Rule("blocks.#.attn.qkv.bias", f"{_HEADS}/<part>/bias", split_query_value),
        *_timm(""),
        Rule("storage_tokens", "registers", axes="_ registers _"),
        *_layer_scale("blocks.#.ls1.gamma", "blocks.#.ls2.gamma"),
        *layer("blocks.#.mlp.w1", f"{_BLOCK}/MlpBlock_0/gate"),
        *layer("blocks.#.mlp.w2", f"{_BLOCK}/MlpBlock_0/Dense_0"),
        *layer("blocks.#.mlp.w3", f"{_BLOCK}/MlpBlock_0/Dense_1"),
        Rule("blocks.#.attn.qkv.bias_mask", None),
        Rule("rope_embed.periods", None),
        Rule("local_cls_norm.*", None),  # of pretraining
        Rule("mask_token", None),
    ),
    module=_vit(vit.DINOV3),
    extra=_dinov3_sizes,
)
HUGGINGFACE_DINOV3 = Layout(
    rules=(
        Rule("embeddings.cls_token", "cls"),
        Rule("embeddings.register_tokens", "registers", axes="_ registers _"),
        *layer("embeddings.patch_embeddings", "embedding", conv, axes=_PATCHES),
        *transformer_blocks(
            "layer.#.",
            norms=("norm1", "norm2"),
            mlp=("mlp.up_proj", "mlp.down_proj"),
            qkv=("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
            out="attention.o_proj",
        ),
        *layer("layer.#.mlp.gate_proj", f"{_BLOCK}/MlpBlock_0/gate"),
        *_layer_scale("layer.#.layer_scale1.lambda1", "layer.#.layer_scale2.lambda1"),
        *norm("norm", "Transformer/encoder_norm"),
        Rule("embeddings.mask_token", None),
    ),
    module=_vit(vit.DINOV3),
    heads="image_heads",
    extra=lambda tensors, *_: {"swiglu": tensors.any("layer.0.mlp.gate_proj.weight")},
)

# --- big_vision's towers, whose names and layouts are ours (`npz` converts older ones) ---


def _big_vision(encoder: str) -> Rules:
    block = f"{encoder}/encoderblock_#"
    heads, hidden = f"{block}/MultiHeadDotProductAttention_0", f"{block}/MlpBlock_0/Dense_0"
    return (
        Rule(f"{heads}/query/kernel", f"{heads}/query/kernel", axes="_ num_heads _", count="depth"),
        Rule(f"{hidden}/kernel", f"{hidden}/kernel", axes="_ mlp_dim"),
        Rule("*", "*"),
    )


BIG_VISION_VIT = Layout(
    rules=(
        Rule("embedding/kernel", "embedding/kernel", axes="patch_size _ _ width"),
        Rule("pos_embedding", "pos_embedding", axes=f"_ {POSITIONS} _"),
        *_big_vision("Transformer"),
    ),
    module=_vit(vit.AUGREG),
    extra=lambda tensors, *_: {
        "class_token": tensors.any("cls"),
        "map_head": tensors.any("MAPHead_0/probe"),
    },
    class_rows=0,
)
BIG_VISION_TEXT = Layout(
    rules=(
        Rule("Embed_0/embedding", "Embed_0/embedding", axes=_VOCABULARY),
        Rule("pos_embedding", "pos_embedding", axes="_ context_length _"),
        Rule("head/kernel", "head/kernel", axes="_ out_dim"),
        *_big_vision("Encoder_0"),
    ),
    module=_text_tower,
    example=token_ids,
)

# --- SigLIP as Hugging Face names it ---

_POOLING, _HEAD = "vision_model.head", "MAPHead_0"
HUGGINGFACE_SIGLIP_IMAGE = Layout(
    rules=(
        *layer(f"{_IMAGE}.patch_embedding", "embedding", conv, axes=_PATCHES),
        Rule(f"{_IMAGE}.position_embedding.weight", "pos_embedding", add_axis, f"{POSITIONS} _"),
        *_huggingface_blocks("vision_model", "mlp_dim _"),
        *norm("vision_model.post_layernorm", "Transformer/encoder_norm"),
        Rule(f"{_POOLING}.probe", f"{_HEAD}/probe"),
        *attention(
            f"{_POOLING}.attention.in_proj_",
            f"{_POOLING}.attention.out_proj",
            f"{_HEAD}/MultiHeadDotProductAttention_0",
        ),
        *norm(f"{_POOLING}.layernorm", f"{_HEAD}/LayerNorm_0"),
        *layer(f"{_POOLING}.mlp.fc1", f"{_HEAD}/MlpBlock_0/Dense_0"),
        *layer(f"{_POOLING}.mlp.fc2", f"{_HEAD}/MlpBlock_0/Dense_1"),
    ),
    module=_vit(vit.SIGLIP),
    heads="image_heads",
    extra=lambda *_: {"class_token": False, "map_head": True},
    class_rows=0,
)
HUGGINGFACE_SIGLIP_TEXT = Layout(
    rules=(
        Rule(f"{_TEXT}.token_embedding.weight", "Embed_0/embedding", axes=_VOCABULARY),
        Rule(f"{_TEXT}.position_embedding.weight", "pos_embedding", add_axis, "context_length _"),
        *_huggingface_blocks("text_model", "mlp_dim _", "Encoder_0"),
        *norm("text_model.final_layer_norm", "Encoder_0/encoder_norm"),
        *layer("text_model.head", "head", axes="out_dim _"),
    ),
    module=_text_tower,
    heads="text_heads",
    example=token_ids,
)
