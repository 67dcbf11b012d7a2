"""UniMatch's DeepLabV3+ on a residual network, and ImageNet weights of that network -> our trees.

In: torch state dicts of NumPy arrays under the published names, complete or of a few tensors only. Out:
nested dicts in the names and layouts of `models`. Names that nothing claims: one ValueError with all of
them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.conv_nets import (
    conv_batch_norm,
    convert_with_statistics,
    pyramid,
    residual_block,
)
from semivl_jax.weights.layout import Rule, below, conv, layer

State = Mapping[str, np.ndarray]

BACKBONE = "backbone."


def import_unimatch(state: State, *, source: str = "the UniMatch weights") -> dict[str, PyTree]:
    """{"params", "batch_stats"} of a `SegmentationModel` of `ResNet` and `DeepLabHead`."""
    encoder = below(state, BACKBONE)
    decoder = {name: array for name, array in state.items() if not name.startswith(BACKBONE)}
    parts = {
        "backbone": import_resnet(encoder, source=source),
        "decoder": convert_with_statistics(decoder, DECODER_RULES, source=source),
    }
    present = {name: part for name, part in parts.items() if any(part)}
    return {
        "params": {name: params for name, (params, _) in present.items()},
        "batch_stats": {name: statistics for name, (_, statistics) in present.items()},
    }


def import_resnet(state: State, *, source: str = "the ImageNet weights") -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of `ResNet`; the classifier of ImageNet is left out.

    Names are torchvision's; the stem is that of three 3×3 convolutions. ValueError for torchvision's own
    7×7 stem.
    """
    if "conv1.weight" in state:
        raise ValueError(
            f"{source} have a stem of one 7×7 convolution, the encoder has one of three 3×3: use the "
            "ImageNet weights that UniMatch distributes (resnet50.pth, resnet101.pth)"
        )
    return convert_with_statistics(state, ENCODER_RULES, source=source)


ENCODER_RULES = (
    *conv_batch_norm(r"conv1\.0", r"conv1\.1", "stem/conv1"),
    *conv_batch_norm(r"conv1\.3", r"conv1\.4", "stem/conv2"),
    *conv_batch_norm(r"conv1\.6", "bn1", "stem/conv3"),
    *(
        rule
        for stage in (1, 2, 3, 4)
        for rule in residual_block(rf"layer{stage}\.(\d+)", rf"stage_{stage - 1}_block_\1")
    ),
    Rule(r"fc\.(weight|bias)", None),
)

DECODER_RULES = (
    *pyramid("head", "aspp"),
    *conv_batch_norm(r"reduce\.0", r"reduce\.1", "low_projection"),
    *conv_batch_norm(r"fuse\.0", r"fuse\.1", "fuse1"),
    *conv_batch_norm(r"fuse\.3", r"fuse\.4", "fuse2"),
    *layer("classifier", "params/classifier", conv),
)
