"""Tables of published convolutional encoders: ResNets, EfficientNet-Lite0, MobileNetV2. One `Layout` each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semivl_jax.models import mobile
from semivl_jax.models.mobile import MobileNet
from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.weights.layout import Layout, Options, Sizes, Tensors
from semivl_jax.weights.rename import CLASSIFIER, Rules, conv_batch_norm, layer

# --- residual networks ---


def _residual_blocks(name: str, path: str) -> Rules:
    """Blocks under torchvision's names; basic blocks have no third convolution."""
    return (
        *conv_batch_norm(f"{name}.conv1", f"{name}.bn1", f"{path}/conv1"),
        *conv_batch_norm(f"{name}.conv2", f"{name}.bn2", f"{path}/conv2"),
        *conv_batch_norm(f"{name}.conv3", f"{name}.bn3", f"{path}/conv3"),
        *conv_batch_norm(f"{name}.downsample.0", f"{name}.downsample.1", f"{path}/shortcut"),
    )


_STAGES: Rules = tuple(
    rule
    for stage in range(4)
    for rule in _residual_blocks(f"layer{stage + 1}.#", f"stage_{stage}_block_#")
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
        *_STAGES,
        *CLASSIFIER,
    ),
    # Other dilations than the default have the same parameters.
    module=lambda sizes, _: ResNet(**sizes),
    extra=_resnet_stages,
    refused={
        "conv1.weight": "has a stem of one 7×7 convolution, the encoder has one of three 3×3; use the "
        "ImageNet weights that UniMatch distributes (resnet50.pth, resnet101.pth)"
    },
)
RESNET18 = Layout(
    rules=(
        *conv_batch_norm("conv1", "bn1", "stem", axes="stem_channels _ _ _"),
        *_STAGES,
        *CLASSIFIER,
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
