"""Whole published segmenters -> `files.Weights` of the format SEGMENTER.

In: state dicts of SemiVL, of the baselines of its ablation and of UniMatch (V1 and V2) as NumPy arrays,
"module." taken off. Out: {"params", "batch_stats"} of a `SegmentationModel` and the sizes that the shapes
tell, by part. What the model does not need (the frozen guidance tower, a classifier of ImageNet) is known
and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from semivl_jax.models.atm import MaskDecoder
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.dpt import DPTHead
from semivl_jax.models.pos_embed import square_grid
from semivl_jax.models.resnet import ResNetV1c
from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.models.vit import CLIP, PROMPTED_CLIP, VisionTransformer
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.weights import encoders, files, zegclip
from semivl_jax.weights import semivl_decoder as published
from semivl_jax.weights.blueprint import checked, image_like, text_like, tupled
from semivl_jax.weights.dinov2 import DPT_RULES, encoder_rules
from semivl_jax.weights.layout import Rule, count, num_heads, placed, shape
from semivl_jax.weights.semivl import backbone_rules
from semivl_jax.weights.timm_vit import vit_rules
from semivl_jax.weights.unimatch import DECODER_RULES, ENCODER_RULES

State = Mapping[str, np.ndarray]
Rules = tuple[Rule, ...]

_VLG_HEADS, _MASK_HEADS = 4, 8
"""Attention heads of the semantic layers and of ZegCLIP's decoder in every published model."""


def from_semivl(
    state: State, *, source: str, image_heads: int | None = None, decoder_heads: int | None = None
) -> files.Weights:
    """SemiVL and its ablations with the dense CLIP tower; either decoder, with or without conv features.

    Heads that are None are those of 64 channels in the tower and 4 in the decoder.
    """
    sizes: dict[str, Any] = {"backbone": _clip_sizes(state, image_heads, source)}
    heads = sizes["backbone"]["num_heads"]
    rules: Rules = (
        *placed(backbone_rules(heads), prefix="backbone.", branch="params/backbone"),
        Rule(r"clip_encoder\..*", None),
    )
    conv = None
    if any(name.startswith("conv_encoder.") for name in state):
        facts = encoders.resnet_v1c_sizes(state, prefix="conv_encoder.", source=source)
        sizes["conv_encoder"], conv = facts, ResNetV1c(**facts)
        rules += placed(published.RESNET_RULES, prefix="conv_encoder.", branch="conv_encoder")
    decoder: nn.Module
    if "decode_head.conv1.weight" in state:
        facts = _vlg_sizes(state, decoder_heads or _VLG_HEADS, source)
        sizes["vlg_decoder"], maps = facts, 1 + len(facts["skip_channels"]) - (conv is not None)
        # Neither pooling nor dilations show in the parameters, only how many branches there are.
        options = tupled(facts) | {"pool_size": None, "use_conv_features": conv is not None}
        branches = options.pop("branches")
        decoder = VLGDecoder(**options, dilations=tuple(range(1, 1 + branches)))
        head = published.vlg_rules(facts["num_heads"])
        rules += placed(head, prefix="decode_head.", branch="params/decoder")
    else:
        sizes["deeplab_decoder"], decoder, maps = *_deeplab(state, source), 2
        rules += placed(published.DEEPLAB_RULES, prefix="decode_head.", branch="decoder")
    backbone = _clip_tower(sizes["backbone"], maps)
    model = SegmentationModel(backbone=backbone, decoder=decoder, crop=64, conv_encoder=conv)
    return _checked(state, rules, model, sizes, kind="semivl", source=source)


def from_vit_baseline(
    state: State, *, source: str, image_heads: int | None = None
) -> files.Weights:
    """The ablation "UniMatch ViT": timm's ViT with ImageNet weights and a DeepLabV3+ head."""
    facts = encoders.vit_sizes(state, prefix="backbone.m.", heads=image_heads, source=source)
    head_sizes, decoder = _deeplab(state, source)
    sizes = {"backbone": facts, "deeplab_decoder": head_sizes}
    backbone = encoders.imagenet_vit(facts).clone(out_indices=(0, facts["depth"] - 1))
    rules = (
        *placed(vit_rules(facts["num_heads"]), prefix="backbone.m.", branch="params/backbone"),
        *placed(published.DEEPLAB_RULES, prefix="decode_head.", branch="decoder"),
        Rule(r"backbone\.m\.head\.(weight|bias)", None),
    )
    model = SegmentationModel(backbone=backbone, decoder=decoder, crop=64)
    return _checked(state, rules, model, sizes, kind="vit_baseline", source=source)


def from_zegclip(
    state: State, *, source: str, image_heads: int | None = None, decoder_heads: int | None = None
) -> files.Weights:
    """The ablation "UniMatch ZegCLIP": prompted CLIP tower and mask decoder."""
    facts = _zegclip_sizes(state, image_heads, source)
    layers = count(state, r"decode_head\.decoder_1\.layers\.(\d+)\.")
    head_sizes = {"num_layers": layers, "num_heads": decoder_heads or _MASK_HEADS}
    backbone = VisionTransformer(
        **{**PROMPTED_CLIP, **tupled(facts)}, out_indices=(facts["depth"],)
    )
    model = SegmentationModel(backbone=backbone, decoder=MaskDecoder(**head_sizes), crop=64)
    rules = (
        *placed(
            zegclip.backbone_rules(facts["num_heads"]),
            prefix="backbone.",
            branch="params/backbone",
        ),
        *placed(
            zegclip.decoder_rules(head_sizes["num_heads"]),
            prefix="decode_head.",
            branch="params/decoder",
        ),
    )
    sizes = {"backbone": facts, "mask_decoder": head_sizes}
    return _checked(state, rules, model, sizes, kind="zegclip", source=source)


def from_unimatch(state: State, *, source: str) -> files.Weights:
    """UniMatch's DeepLabV3+ on a residual network."""
    facts = encoders.resnet_sizes(state, prefix="backbone.", source=source)
    classes, channels = shape(state, "classifier.weight", 4, source=source)[:2]
    low = shape(state, "reduce.0.weight", 4, source=source)[0]
    head_sizes = {"num_classes": classes, "channels": channels, "low_channels": low}
    model = SegmentationModel(
        backbone=encoders.resnet(facts), decoder=DeepLabHead(**head_sizes), crop=64
    )
    rules = (
        *placed(ENCODER_RULES, prefix="backbone.", branch="backbone"),
        *placed(DECODER_RULES, prefix="", branch="decoder"),
    )
    sizes = {"backbone": facts, "deeplab_decoder": head_sizes}
    return _checked(state, rules, model, sizes, kind="unimatch_deeplab", source=source)


def from_unimatch_v2(state: State, *, source: str, image_heads: int | None = None) -> files.Weights:
    """UniMatch V2: DINOv2 and a DPT head."""
    facts = encoders.vit_sizes(state, prefix="backbone.", heads=image_heads, source=source)
    out_indices = [shape(state, f"head.projects.{i}.weight", 4, source=source)[0] for i in range(4)]
    head_sizes = {
        "num_classes": shape(state, "head.scratch.output_conv.2.weight", 4, source=source)[0],
        "channels": shape(state, "head.scratch.layer1_rn.weight", 4, source=source)[0],
        "out_channels": out_indices,
        "patch_size": facts["patch_size"],
    }
    if facts["depth"] < 4:
        raise ValueError(f"{source} has {facts['depth']} blocks, too few for four maps")
    backbone = encoders.dinov2(facts, out_indices=tuple(range(4)))
    model = SegmentationModel(backbone=backbone, decoder=DPTHead(**tupled(head_sizes)), crop=64)
    rules = (
        *placed(encoder_rules(facts["num_heads"]), prefix="backbone.", branch="params/backbone"),
        *placed(DPT_RULES, prefix="head.", branch="params/decoder"),
    )
    sizes = {"backbone": facts, "dpt_decoder": head_sizes}
    return _checked(state, rules, model, sizes, kind="unimatch_v2", source=source)


def _checked(
    state: State,
    rules: Rules,
    model: SegmentationModel,
    sizes: dict[str, Any],
    *,
    kind: str,
    source: str,
) -> files.Weights:
    facts = sizes["backbone"]
    side = facts["grid"][0] * facts["patch_size"] if "grid" in facts else 64
    inputs = (image_like(side), text_like(facts.get("out_dim", 1)))
    return checked(
        state,
        rules,
        model,
        *inputs,
        format=files.SEGMENTER,
        kind=kind,
        sizes=sizes,
        source=source,
    )


def _clip_tower(sizes: Mapping[str, Any], maps: int) -> VisionTransformer:
    """The dense tower with so many maps, the last of them the dense embedding."""
    return VisionTransformer(
        **CLIP, **tupled(sizes), out_indices=(*range(maps - 1), sizes["depth"])
    )


def _clip_sizes(state: State, heads: int | None, source: str) -> dict[str, Any]:
    name = "backbone.patch_embed.projection.weight"
    width, _, patch, _ = shape(state, name, 4, source=source)
    rows = shape(state, "backbone.pos_embed", 3, source=source)[1]
    hidden = shape(state, "backbone.layers.0.ffn.layers.0.0.weight", 2, source=source)[0]
    return {
        "patch_size": patch,
        "width": width,
        "depth": count(state, r"backbone\.layers\.(\d+)\."),
        "num_heads": num_heads(width, heads, "image_heads", source=source),
        "mlp_dim": hidden,
        "out_dim": shape(state, "backbone.proj.weight", 4, source=source)[0],
        "grid": list(square_grid(rows, source=source)),
    }


def _zegclip_sizes(state: State, heads: int | None, source: str) -> dict[str, Any]:
    width, _, patch, _ = shape(state, "backbone.conv1.weight", 4, source=source)
    rows = shape(state, "backbone.positional_embedding", 2, source=source)[0]
    hidden = "backbone.transformer.resblocks.0.mlp.c_fc.weight"
    return {
        "patch_size": patch,
        "width": width,
        "depth": count(state, r"backbone\.transformer\.resblocks\.(\d+)\."),
        "num_heads": num_heads(width, heads, "image_heads", source=source),
        "mlp_dim": shape(state, hidden, 2, source=source)[0],
        "out_dim": shape(state, "backbone.proj", 2, source=source)[1],
        "grid": list(square_grid(rows, source=source)),
        "prompts": shape(state, "backbone.prompt_embeddings", 3, source=source)[1],
        "prompt_depth": shape(state, "backbone.deep_prompt_embeddings", 3, source=source)[0],
    }


def _vlg_sizes(state: State, heads: int, source: str) -> dict[str, Any]:
    def width(name: str, rank: int = 4, axis: int = 0) -> int:
        return shape(state, f"decode_head.{name}.weight", rank, source=source)[axis]

    skips = count(state, r"decode_head\.skip_proj\.(\d+)\.")
    channels, text = width("conv1"), width("text_proj.0", 2)
    if (channels + text) % heads:
        raise ValueError(
            f"{source}: {heads} heads do not divide the {channels + text} channels of the semantic "
            "layers; give --decoder_heads"
        )
    return {
        "channels": channels,
        "text_channels": text,
        "up_channels": [width(f"up{i + 1}.conv.0") for i in range(skips)],
        "skip_channels": [width(f"skip_proj.{i}.0") for i in range(skips)],
        "num_layers": count(state, r"decode_head\.layers\.(\d+)\."),
        "num_heads": heads,
        "mlp_dim": width("layers.0.transformer.ffn.layers.0.0", 2),
        "kernel_size": width("conv1", axis=2),
        "branches": count(state, r"decode_head\.aspp\.aspp_convs\.(\d+)\.0\."),
    }


def _deeplab(state: State, source: str) -> tuple[dict[str, Any], DeepLabHead]:
    classes = shape(state, "decode_head.head.6.weight", 4, source=source)[0]
    channels = shape(state, "decode_head.head.0.weight", 4, source=source)[0]
    low = shape(state, "decode_head.c1_proj.0.weight", 4, source=source)[0]
    sizes = {"num_classes": classes, "channels": channels, "low_channels": low}
    return sizes, DeepLabHead(**sizes)
