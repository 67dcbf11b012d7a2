"""Whole published segmenters -> `files.Weights` of the format SEGMENTER.

In: state dicts of SemiVL and UniMatch as NumPy arrays, "module." taken off. Out: {"params", "batch_stats"} of
a `Segmenter`, arrays in the dtype that they came in, and the sizes that the shapes tell. Strict: a model of
these sizes is built with shapes only, and what is missing, unexpected or of another shape is listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.position import square_grid
from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.models.segmenter import Segmenter
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.types import ClassText
from semivl_jax.weights import files
from semivl_jax.weights import semivl_decoder as published
from semivl_jax.weights.layout import Rule, count, num_heads, placed, shape, translate
from semivl_jax.weights.semivl import backbone_rules
from semivl_jax.weights.unimatch import DECODER_RULES, ENCODER_RULES

State = Mapping[str, np.ndarray]

_DECODER_HEADS = 4
"""Of the semantic layers, in every published model."""


def from_semivl(
    state: State,
    *,
    source: str,
    image_heads: int | None = None,
    decoder_heads: int | None = None,
) -> files.Weights:
    """SemiVL and its ablations with the dense CLIP tower; either decoder.

    Heads that are None are those of 64 channels in the tower and 4 in the decoder. The frozen guidance tower
    that the checkpoints carry along ("clip_encoder.") is left out.
    """
    backbone, rules = _clip_backbone(state, image_heads, source)
    sizes: dict[str, Any] = {"backbone": backbone}
    if any(name.startswith("conv_encoder.") for name in state):
        sizes["conv_encoder"], more = _conv_encoder(state, source)
        rules = (*rules, *more)
    if "decode_head.conv1.weight" in state:
        heads = decoder_heads or _DECODER_HEADS
        sizes["vlg_decoder"] = _vlg_sizes(state, heads, "conv_encoder" in sizes, source)
        decoder = published.vlg_rules(heads)
    else:
        sizes["deeplab_decoder"] = _deeplab_sizes(state, source)
        decoder = published.DEEPLAB_RULES
    rules = (
        *rules,
        *placed(decoder, prefix="decode_head.", branch=_branch(decoder, "decoder")),
        Rule(r"clip_encoder\..*", None),
    )
    return _checked(state, rules, sizes, kind="semivl", source=source)


def from_unimatch(state: State, *, source: str) -> files.Weights:
    """UniMatch's DeepLabV3+ on a residual network."""
    classes, channels, _, _ = shape(state, "classifier.weight", 4, source=source)
    sizes = {
        "resnet": resnet_sizes(state, prefix="backbone.", source=source),
        "deeplab_decoder": {
            "num_classes": classes,
            "channels": channels,
            "low_channels": shape(state, "reduce.0.weight", 4, source=source)[0],
        },
    }
    rules = (
        *placed(ENCODER_RULES, prefix="backbone.", branch="backbone"),
        *placed(DECODER_RULES, prefix="", branch="decoder"),
    )
    return _checked(state, rules, sizes, kind="unimatch_deeplab", source=source)


def resnet_sizes(state: State, *, prefix: str, source: str) -> dict[str, Any]:
    """Constructor arguments of `ResNet` that its state dict tells (not its dilations)."""

    def width(name: str) -> int:
        return shape(state, f"{prefix}{name}", 4, source=source)[0]

    stages, start = range(1, 5), re.escape(prefix)
    return {
        "stem_channels": width("conv1.6.weight"),
        "blocks": [count(state, rf"{start}layer{stage}\.(\d+)\.") for stage in stages],
        "channels": [width(f"layer{stage}.0.conv1.weight") for stage in stages],
    }


def _clip_backbone(
    state: State, heads: int | None, source: str
) -> tuple[dict[str, Any], tuple[Rule, ...]]:
    name = "backbone.patch_embed.projection.weight"
    width, _, patch, _ = shape(state, name, 4, source=source)
    rows = shape(state, "backbone.pos_embed", 3, source=source)[1]
    hidden = shape(state, "backbone.layers.0.ffn.layers.0.0.weight", 2, source=source)[0]
    sizes = {
        "patch_size": patch,
        "width": width,
        "depth": count(state, r"backbone\.layers\.(\d+)\."),
        "num_heads": num_heads(width, heads, "image_heads", source=source),
        "mlp_dim": hidden,
        "out_dim": shape(state, "backbone.proj.weight", 4, source=source)[0],
        "grid": list(square_grid(rows, source=source)),
    }
    rules = placed(backbone_rules(sizes["num_heads"]), prefix="backbone.", branch="params/backbone")
    return sizes, rules


def _conv_encoder(state: State, source: str) -> tuple[dict[str, Any], tuple[Rule, ...]]:
    sizes = {
        "stem_channels": shape(state, "conv_encoder.stem.6.weight", 4, source=source)[0],
        "base_channels": shape(state, "conv_encoder.layer1.0.conv1.weight", 4, source=source)[0],
        "num_blocks": count(state, r"conv_encoder\.layer1\.(\d+)\."),
    }
    rules = placed(published.RESNET_RULES, prefix="conv_encoder.", branch="conv_encoder")
    return sizes, rules


def _vlg_sizes(state: State, heads: int, conv: bool, source: str) -> dict[str, Any]:
    def width(name: str, rank: int = 4, axis: int = 0) -> int:
        return shape(state, f"decode_head.{name}.weight", rank, source=source)[axis]

    skips = count(state, r"decode_head\.skip_proj\.(\d+)\.")
    layers = count(state, r"decode_head\.layers\.(\d+)\.")
    dilations = count(state, r"decode_head\.aspp\.aspp_convs\.(\d+)\.0\.")
    channels, text = width("conv1"), width("text_proj.0", 2)
    if (channels + text) % heads:
        raise ValueError(
            f"{source}: {heads} heads do not divide the {channels + text} channels of the semantic layers; "
            "give --decoder_heads"
        )
    return {
        "channels": channels,
        "text_channels": text,
        "up_channels": [width(f"up{i + 1}.conv.0") for i in range(skips)],
        "skip_channels": [width(f"skip_proj.{i}.0") for i in range(skips)],
        "num_layers": layers,
        "num_heads": heads,
        "mlp_dim": width("layers.0.transformer.ffn.layers.0.0", 2) if layers else 0,
        "kernel_size": width("conv1", axis=2),
        "num_branches": dilations,
        "use_conv_features": conv,
    }


def _deeplab_sizes(state: State, source: str) -> dict[str, Any]:
    classes, channels, _, _ = shape(state, "decode_head.head.6.weight", 4, source=source)
    low = shape(state, "decode_head.c1_proj.0.weight", 4, source=source)[0]
    return {"num_classes": classes, "channels": channels, "low_channels": low}


def _branch(rules: tuple[Rule, ...], part: str) -> str:
    """Where rules put a part: those without statistics know no collections."""
    paths = [rule.path for rule in rules if rule.path]
    return part if any(path.startswith("batch_stats/") for path in paths) else f"params/{part}"


def _checked(
    state: State, rules: tuple[Rule, ...], sizes: dict[str, Any], *, kind: str, source: str
) -> files.Weights:
    translation = translate(state, rules, source=source)
    try:
        like = _shapes(sizes)
    except (ValueError, TypeError) as error:  # sizes that fit no model, whatever module notices it
        raise ValueError(f"{source} has sizes that make no model ({error})") from error
    translation.check(like, source=source)
    tree = {"batch_stats": {}, **translation.tree}
    return files.Weights(format=files.SEGMENTER, kind=kind, sizes=sizes, tree=tree)


def _shapes(sizes: dict[str, Any]) -> dict[str, Any]:
    """Shapes of the variables of a segmenter of these sizes, leaves without values."""
    model, dim = _model(sizes)
    side = sizes["backbone"]["patch_size"] * 16 if "backbone" in sizes else 64
    text = ClassText(jnp.zeros((2, dim)), jnp.arange(2), 2)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda image: model.init(jax.random.key(0), image, text), image)


def _model(sizes: dict[str, Any]) -> tuple[Segmenter, int]:
    """A segmenter of these sizes and the dimension of its text embeddings."""
    if "resnet" in sizes:
        facts = {k: tuple(v) if isinstance(v, list) else v for k, v in sizes["resnet"].items()}
        head = DeepLabHead(**sizes["deeplab_decoder"])
        return Segmenter(backbone=ResNet(**facts), decoder=head, crop=64), 1
    tower = dict(sizes["backbone"])
    conv = ResNetV1c(**sizes["conv_encoder"]) if "conv_encoder" in sizes else None
    decoder: nn.Module
    if "vlg_decoder" in sizes:
        facts = {k: tuple(v) if isinstance(v, list) else v for k, v in sizes["vlg_decoder"].items()}
        branches = facts.pop("num_branches")
        decoder = VLGDecoder(**facts, pool_size=None, dilations=tuple(range(1, 1 + branches)))
        maps = 1 + len(facts["skip_channels"]) - (conv is not None)
    else:
        decoder, maps = DeepLabHead(**sizes["deeplab_decoder"]), 2
    depth = tower["depth"]
    taps = (*range(maps - 1), depth)
    grid = tuple(tower.pop("grid"))
    backbone = VisionTransformer(**tower, grid=grid, taps=taps)
    return Segmenter(backbone=backbone, decoder=decoder, crop=64, conv_encoder=conv), tower[
        "out_dim"
    ]
