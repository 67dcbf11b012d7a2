"""Published image encoders: sizes from their shapes, and files of the format BACKBONE.

In: state dicts as NumPy arrays: residual networks with ImageNet weights (stem of three 3×3 convolutions),
vision transformers of timm, DINOv2. Out: sizes (constructor arguments of `ResNet`, `ResNetV1c`,
`VisionTransformer` that shapes tell, so without out_indices and dilations), the module, and {"params",
"batch_stats"}. The classifier of ImageNet is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from semivl_jax.models.pos_embed import square_grid
from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.models.vit import DINOV2, IMAGENET, VisionTransformer
from semivl_jax.weights import files
from semivl_jax.weights.blueprint import checked, image_like, tupled
from semivl_jax.weights.dinov2 import encoder_rules
from semivl_jax.weights.layout import Rule, count, num_heads, placed, shape
from semivl_jax.weights.semivl_decoder import RESNET_RULES
from semivl_jax.weights.timm_vit import vit_rules
from semivl_jax.weights.unimatch import ENCODER_RULES

State = Mapping[str, np.ndarray]

_CLASSIFIER = Rule(r"(fc|head)\.(weight|bias)", None)


def from_resnet(state: State, *, source: str) -> files.Weights:
    """ImageNet weights of the residual networks that UniMatch distributes: stem 64-64-128 (or others)."""
    sizes = resnet_sizes(state, prefix="", source=source)
    model = resnet(sizes)
    return checked(
        state,
        ENCODER_RULES,
        model,
        image_like(64),
        format=files.BACKBONE,
        kind="resnet",
        sizes=sizes,
        source=source,
    )


def from_resnet_v1c(state: State, *, source: str) -> files.Weights:
    """ImageNet weights of a ResNet-V1c; only stem and first stage are kept, which `ResNetV1c` is."""
    sizes = resnet_v1c_sizes(state, prefix="", source=source)
    later = Rule(r"layer[234]\..*", None)
    return checked(
        state,
        (*RESNET_RULES, later, _CLASSIFIER),
        ResNetV1c(**sizes),
        image_like(64),
        format=files.BACKBONE,
        kind="resnet_v1c",
        sizes=sizes,
        source=source,
    )


def from_timm_vit(state: State, *, source: str, image_heads: int | None = None) -> files.Weights:
    """timm's ViT with ImageNet weights; heads that are None have 64 channels."""
    sizes = vit_sizes(state, prefix="", heads=image_heads, source=source)
    model = imagenet_vit(sizes)
    rules = placed((*vit_rules(model.num_heads), _CLASSIFIER), prefix="", branch="params")
    return checked(
        state,
        rules,
        model,
        image_like(model.grid[0] * model.patch_size),
        format=files.BACKBONE,
        kind="imagenet_vit",
        sizes=sizes,
        source=source,
    )


def from_dinov2(state: State, *, source: str, image_heads: int | None = None) -> files.Weights:
    """DINOv2 as published, without register tokens; heads that are None have 64 channels."""
    if "register_tokens" in state:
        raise ValueError(
            f"{source} is a DINOv2 with register tokens; convert one without, such as "
            "dinov2_vitb14_pretrain.pth"
        )
    sizes = vit_sizes(state, prefix="", heads=image_heads, source=source)
    model = dinov2(sizes)
    return checked(
        state,
        placed(encoder_rules(model.num_heads), prefix="", branch="params"),
        model,
        image_like(model.grid[0] * model.patch_size),
        format=files.BACKBONE,
        kind="dinov2",
        sizes=sizes,
        source=source,
    )


def resnet(sizes: Mapping[str, Any]) -> ResNet:
    """The module of these sizes; other dilations than the default have the same parameters."""
    return ResNet(**tupled(sizes))


def imagenet_vit(sizes: Mapping[str, Any]) -> VisionTransformer:
    """The module of these sizes that returns the tokens of its last block."""
    facts = tupled(sizes)
    return VisionTransformer(**{**IMAGENET, **facts}, out_indices=(facts["depth"] - 1,))


def dinov2(
    sizes: Mapping[str, Any], out_indices: tuple[int, ...] | None = None
) -> VisionTransformer:
    """The module of these sizes; without `out_indices` it returns the tokens of its last block."""
    facts = tupled(sizes)
    return VisionTransformer(
        **{**DINOV2, **facts}, out_indices=out_indices or (facts["depth"] - 1,)
    )


def resnet_sizes(state: State, *, prefix: str, source: str) -> dict[str, Any]:
    """Constructor arguments of `ResNet`. ValueError for torchvision's own stem."""
    if f"{prefix}conv1.weight" in state:
        raise ValueError(
            f"{source} has a stem of one 7×7 convolution, the encoder has one of three 3×3; use the "
            "ImageNet weights that UniMatch distributes (resnet50.pth, resnet101.pth)"
        )

    def width(name: str) -> int:
        return shape(state, f"{prefix}{name}.weight", 4, source=source)[0]

    stages, start = range(1, 5), re.escape(prefix)
    return {
        "stem_channels": width("conv1.6"),
        "blocks": [count(state, rf"{start}layer{stage}\.(\d+)\.") for stage in stages],
        "channels": [width(f"layer{stage}.0.conv1") for stage in stages],
    }


def resnet_v1c_sizes(state: State, *, prefix: str, source: str) -> dict[str, Any]:
    """Constructor arguments of `ResNetV1c`."""

    def width(name: str) -> int:
        return shape(state, f"{prefix}{name}.weight", 4, source=source)[0]

    return {
        "stem_channels": width("stem.6"),
        "base_channels": width("layer1.0.conv1"),
        "num_blocks": count(state, rf"{re.escape(prefix)}layer1\.(\d+)\."),
    }


def vit_sizes(state: State, *, prefix: str, heads: int | None, source: str) -> dict[str, Any]:
    """Constructor arguments of timm's ViT and of DINOv2, which has timm's names."""
    width, _, patch, _ = shape(state, f"{prefix}patch_embed.proj.weight", 4, source=source)
    rows = shape(state, f"{prefix}pos_embed", 3, source=source)[1]
    return {
        "patch_size": patch,
        "width": width,
        "depth": count(state, rf"{re.escape(prefix)}blocks\.(\d+)\."),
        "num_heads": num_heads(width, heads, "image_heads", source=source),
        "mlp_dim": shape(state, f"{prefix}blocks.0.mlp.fc1.weight", 2, source=source)[0],
        "grid": list(square_grid(rows, source=source)),
    }
