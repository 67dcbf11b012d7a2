"""Tables of published encoders: CLIP, timm's ViT, DINOv2, DINOv3, big_vision's towers, residual networks.

One `Layout` each. Rules drop what is not needed (classifiers of ImageNet, mask tokens).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from semivl_jax.models import mobile, vit
from semivl_jax.models.clip_text import SiglipText, TextTransformer
from semivl_jax.models.mobile import MobileNet
from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.weights.layout import POSITIONS, Layout, Options, Sizes, Tensors, token_ids
from semivl_jax.weights.rename import (
    Rule,
    Rules,
    add_axes,
    add_axis,
    attention,
    conv,
    conv_batch_norm,
    layer,
    linear,
    norm,
    pointwise,
    split_query_value,
    transformer_blocks,
)

_CLASSIFIER: Rules = tuple(
    Rule(f"{layer}.{part}", None) for layer in ("fc", "head") for part in ("weight", "bias")
)
_PATCHES = "width _ patch_size _"


def _vit(kind: Mapping[str, Any]) -> Callable[[Sizes, int], nn.Module]:
    """A vision transformer of `models.vit`; its last map is the dense embedding or the last block."""

    def module(sizes: Sizes, maps: int) -> nn.Module:
        last = sizes["depth"] if "out_dim" in sizes else sizes["depth"] - 1
        indices = (*range(maps - 1), last)
        return vit.VisionTransformer(**{**kind, **sizes}, out_indices=indices)

    return module


def _clip_text(sizes: Sizes, _: int) -> nn.Module:
    return TextTransformer(**sizes)


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
        Rule("token_embedding.weight", "token_embedding/embedding", axes="vocab_size width"),
        Rule("positional_embedding", "pos_embedding", add_axis, "context_length _"),
        *_openai_blocks(""),
        *norm("ln_final", "Transformer/encoder_norm"),
        Rule("text_projection", "projection/kernel", axes="_ out_dim"),
    ),
    module=_clip_text,
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


def _huggingface_blocks(tower: str, hidden: str) -> Rules:
    return transformer_blocks(
        f"{tower}.encoder.layers.#.",
        norms=("layer_norm1", "layer_norm2"),
        mlp=("mlp.fc1", "mlp.fc2"),
        qkv=("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        out="self_attn.out_proj",
        hidden=hidden,
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
        Rule(
            f"{_TEXT}.token_embedding.weight", "token_embedding/embedding", axes="vocab_size width"
        ),
        Rule(f"{_TEXT}.position_embedding.weight", "pos_embedding", add_axis, "context_length _"),
        *_huggingface_blocks("text_model", ""),
        *norm("text_model.final_layer_norm", "Transformer/encoder_norm"),
        Rule("text_projection.weight", "projection/kernel", linear, "out_dim _"),
    ),
    module=_clip_text,
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


_TIMM: Rules = (
    Rule("pos_embed", "pos_embedding", axes=f"_ {POSITIONS} _"),
    *_timm("mlp_dim _"),
)
TIMM_VIT = Layout(rules=(*_TIMM, *_CLASSIFIER), module=_vit(vit.IMAGENET), heads="image_heads")
DINOV2 = Layout(
    rules=(
        *_TIMM,
        Rule("blocks.#.ls1.gamma", "Transformer/encoderblock_#/LayerScale_0"),
        Rule("blocks.#.ls2.gamma", "Transformer/encoderblock_#/LayerScale_1"),
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

_BLOCK = "Transformer/encoderblock_#"
_MASKED_BIAS = Rule(
    "blocks.#.attn.qkv.bias",
    f"{_BLOCK}/MultiHeadDotProductAttention_0/<part>/bias",
    split_query_value,
)


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
        _MASKED_BIAS,
        *_timm(""),
        Rule("storage_tokens", "registers", axes="_ registers _"),
        Rule("blocks.#.ls1.gamma", f"{_BLOCK}/LayerScale_0"),
        Rule("blocks.#.ls2.gamma", f"{_BLOCK}/LayerScale_1"),
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
        Rule("layer.#.layer_scale1.lambda1", f"{_BLOCK}/LayerScale_0"),
        Rule("layer.#.layer_scale2.lambda1", f"{_BLOCK}/LayerScale_1"),
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
        Rule("Embed_0/embedding", "Embed_0/embedding", axes="vocab_size width"),
        Rule("pos_embedding", "pos_embedding", axes="_ context_length _"),
        Rule("head/kernel", "head/kernel", axes="_ out_dim"),
        *_big_vision("Encoder_0"),
    ),
    module=lambda sizes, _: SiglipText(**sizes),
    example=token_ids,
)

# --- SigLIP as Hugging Face names it ---


def _siglip_blocks(tower: str, encoder: str, hidden: str) -> Rules:
    return tuple(
        dataclasses.replace(rule, path=f"{encoder}/{rule.path.removeprefix('Transformer/')}")
        for rule in _huggingface_blocks(tower, hidden)
    )


_POOLING, _HEAD = "vision_model.head", "MAPHead_0"
HUGGINGFACE_SIGLIP_IMAGE = Layout(
    rules=(
        *layer(f"{_IMAGE}.patch_embedding", "embedding", conv, axes=_PATCHES),
        Rule(f"{_IMAGE}.position_embedding.weight", "pos_embedding", add_axis, f"{POSITIONS} _"),
        *_siglip_blocks("vision_model", "Transformer", "mlp_dim _"),
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
        Rule(f"{_TEXT}.token_embedding.weight", "Embed_0/embedding", axes="vocab_size width"),
        Rule(f"{_TEXT}.position_embedding.weight", "pos_embedding", add_axis, "context_length _"),
        *_siglip_blocks("text_model", "Encoder_0", "mlp_dim _"),
        *norm("text_model.final_layer_norm", "Encoder_0/encoder_norm"),
        *layer("text_model.head", "head", axes="out_dim _"),
    ),
    module=lambda sizes, _: SiglipText(**sizes),
    heads="text_heads",
    example=token_ids,
)

# --- residual networks ---


def _residual_blocks(name: str, path: str) -> Rules:
    """Bottleneck blocks under torchvision's names."""
    return (
        *conv_batch_norm(f"{name}.conv1", f"{name}.bn1", f"{path}/conv1"),
        *conv_batch_norm(f"{name}.conv2", f"{name}.bn2", f"{path}/conv2"),
        *conv_batch_norm(f"{name}.conv3", f"{name}.bn3", f"{path}/conv3"),
        *conv_batch_norm(f"{name}.downsample.0", f"{name}.downsample.1", f"{path}/shortcut"),
    )


def _resnet_stages(tensors: Tensors, *_: Sizes | Options) -> Sizes:
    stages = [f"layer{stage}" for stage in (1, 2, 3, 4)]
    return {
        "blocks": [tensors.count(f"{stage}.#.conv1.weight") for stage in stages],
        "channels": [tensors.axis(f"{stage}.0.conv1.weight", "out _ _ _") for stage in stages],
    }


RESNET = Layout(
    rules=(
        *conv_batch_norm("conv1.0", "conv1.1", "stem/conv1"),
        *conv_batch_norm("conv1.3", "conv1.4", "stem/conv2"),
        *conv_batch_norm("conv1.6", "bn1", "stem/conv3", axes="stem_channels _ _ _"),
        *_residual_blocks("layer1.#", "stage_0_block_#"),
        *_residual_blocks("layer2.#", "stage_1_block_#"),
        *_residual_blocks("layer3.#", "stage_2_block_#"),
        *_residual_blocks("layer4.#", "stage_3_block_#"),
        *_CLASSIFIER,
    ),
    # Other dilations than the default have the same parameters.
    module=lambda sizes, _: ResNet(**sizes),
    extra=_resnet_stages,
    refused={
        "conv1.weight": "has a stem of one 7×7 convolution, the encoder has one of three 3×3; use the "
        "ImageNet weights that UniMatch distributes (resnet50.pth, resnet101.pth)"
    },
)


def _basic_blocks(name: str, path: str) -> Rules:
    return (
        *conv_batch_norm(f"{name}.conv1", f"{name}.bn1", f"{path}/conv1"),
        *conv_batch_norm(f"{name}.conv2", f"{name}.bn2", f"{path}/conv2"),
        *conv_batch_norm(f"{name}.downsample.0", f"{name}.downsample.1", f"{path}/shortcut"),
    )


RESNET18 = Layout(
    rules=(
        *conv_batch_norm("conv1", "bn1", "stem", axes="stem_channels _ _ _"),
        *_basic_blocks("layer1.#", "stage_0_block_#"),
        *_basic_blocks("layer2.#", "stage_1_block_#"),
        *_basic_blocks("layer3.#", "stage_2_block_#"),
        *_basic_blocks("layer4.#", "stage_3_block_#"),
        *_CLASSIFIER,
    ),
    module=lambda sizes, _: ResNet(**sizes),
    extra=lambda *arguments: {"basic": True, **_resnet_stages(*arguments)},
    refused={
        "conv1.0.weight": "is a ResNet-18 with a stem of three convolutions (timm's resnet18d); convert "
        "resnet18, whose stem is one 7×7 convolution"
    },
)
RESNET_V1C = Layout(
    rules=(
        *conv_batch_norm("stem.0", "stem.1", "stem/conv1"),
        *conv_batch_norm("stem.3", "stem.4", "stem/conv2"),
        *conv_batch_norm("stem.6", "stem.7", "stem/conv3", axes="stem_channels _ _ _"),
        *_residual_blocks("layer1.#", "block_#"),
    ),
    module=lambda sizes, _: ResNetV1c(**sizes),
    extra=lambda tensors, *_: {
        "base_channels": tensors.axis("layer1.0.conv1.weight", "out _ _ _"),
        "num_blocks": tensors.count("layer1.#.conv1.weight"),
    },
)

# --- light convolutional networks: stages and blocks are numbered from 0, as timm does ---


def _mobile(
    rules: Rules, network: Mapping[str, Any], classifier: str, *, tf: bool = False
) -> Layout:
    """The head and the ImageNet classifier are kept where the weights have them."""

    def extra(tensors: Tensors, *_: Sizes | Options) -> Sizes:
        found: Sizes = {"tf": tf, "head_channels": 0, "num_classes": 0}
        if tensors.any(f"{classifier}.weight"):
            axes = "num_classes head_channels"
            found |= tensors.axes(f"{classifier}.weight", axes)
        return found

    return Layout(
        rules=(*rules, *layer(classifier, "classifier")),
        module=lambda sizes, _: MobileNet(**network, **sizes),
        extra=extra,
        refused=_SQUEEZED,
    )


_LITE = "is an EfficientNet with squeeze-and-excitation; convert EfficientNet-Lite0, which has none"
_SQUEEZED = {"_blocks.0._se_reduce.*": _LITE, "blocks.0.0.se.*": _LITE}


def _timm_mobile() -> Rules:
    first, later = "blocks.0.#", "blocks.#.#"
    first_path, path = "stage_0_block_#", "stage_#_block_#"
    return (
        *conv_batch_norm("conv_stem", "bn1", "stem"),
        *conv_batch_norm(f"{first}.conv_dw", f"{first}.bn1", f"{first_path}/depthwise"),
        *conv_batch_norm(f"{first}.conv_pw", f"{first}.bn2", f"{first_path}/project"),
        *conv_batch_norm(f"{later}.conv_pw", f"{later}.bn1", f"{path}/expand"),
        *conv_batch_norm(f"{later}.conv_dw", f"{later}.bn2", f"{path}/depthwise"),
        *conv_batch_norm(f"{later}.conv_pwl", f"{later}.bn3", f"{path}/project"),
        *conv_batch_norm("conv_head", "bn2", "head"),
    )


def _block_paths(network: Mapping[str, Any]) -> list[str]:
    """Our names of a network's blocks, in their order."""
    return [
        f"stage_{i}_block_{j}"
        for i, stage in enumerate(network["stages"])
        for j in range(stage.blocks)
    ]


def _lite0_package() -> Rules:
    """Names of the package efficientnet_lite_pytorch."""
    blocks: Rules = ()
    for i, path in enumerate(_block_paths(mobile.EFFICIENTNET_LITE0)):
        name = f"_blocks.{i}"
        blocks += (
            *conv_batch_norm(f"{name}._expand_conv", f"{name}._bn0", f"{path}/expand"),
            *conv_batch_norm(f"{name}._depthwise_conv", f"{name}._bn1", f"{path}/depthwise"),
            *conv_batch_norm(f"{name}._project_conv", f"{name}._bn2", f"{path}/project"),
        )
    return (
        *conv_batch_norm("_conv_stem", "_bn0", "stem"),
        *blocks,
        *conv_batch_norm("_conv_head", "_bn1", "head"),
    )


def _torchvision_mobilenet_v2() -> Rules:
    paths = _block_paths(mobile.MOBILENET_V2)
    blocks: Rules = ()
    for i, path in enumerate(paths):
        name = f"features.{i + 1}.conv"
        parts = ("depthwise",) if i == 0 else ("expand", "depthwise")
        for j, part in enumerate(parts):
            blocks += conv_batch_norm(f"{name}.{j}.0", f"{name}.{j}.1", f"{path}/{part}")
        last = len(parts)
        blocks += conv_batch_norm(f"{name}.{last}", f"{name}.{last + 1}", f"{path}/project")
    head = f"features.{len(paths) + 1}"
    return (
        *conv_batch_norm("features.0.0", "features.0.1", "stem"),
        *blocks,
        *conv_batch_norm(f"{head}.0", f"{head}.1", "head"),
    )


EFFICIENTNET_LITE0 = _mobile(_lite0_package(), mobile.EFFICIENTNET_LITE0, "_fc", tf=True)
TIMM_EFFICIENTNET_LITE0 = _mobile(_timm_mobile(), mobile.EFFICIENTNET_LITE0, "classifier")
TIMM_TF_EFFICIENTNET_LITE0 = _mobile(
    _timm_mobile(), mobile.EFFICIENTNET_LITE0, "classifier", tf=True
)
TIMM_MOBILENET_V2 = _mobile(_timm_mobile(), mobile.MOBILENET_V2, "classifier")
MOBILENET_V2 = _mobile(_torchvision_mobilenet_v2(), mobile.MOBILENET_V2, "classifier.1")
