"""Published decoders, convolutional encoders and whole models to the parameter trees of `models`.

In: torch state dicts of NumPy arrays under the published names, complete or of a few tensors only
(gradients convert like weights). Out: nested dicts, in the names and layouts of `models`. A name that
nothing claims raises a ValueError that lists all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.conv_nets import (
    conv_batch_norm,
    conv_norm,
    convert_with_statistics,
    pyramid,
    residual_block,
)
from semivl_jax.weights.layout import (
    Rule,
    attention,
    below,
    conv,
    convert,
    layer,
    norm,
    upsample,
)
from semivl_jax.weights.semivl import import_backbone

State = Mapping[str, np.ndarray]

BACKBONE, DECODER, CONV_ENCODER = "backbone.", "decode_head.", "conv_encoder."
GUIDANCE = "clip_encoder."


def import_decoder(state: State, *, num_heads: int) -> PyTree:
    """Parameters of `VLGDecoder`; `num_heads` are those of its semantic layers."""
    return convert(state, vlg_rules(num_heads), source="the language-guided decoder")


def import_deeplab_head(state: State) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of `DeepLabHead`."""
    return convert_with_statistics(state, DEEPLAB_RULES, source="the DeepLabV3+ head")


def import_conv_encoder(state: State) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of `ResNetV1c`."""
    return convert_with_statistics(state, RESNET_RULES, source="the convolutional encoder")


def import_segmenter(state: State, *, backbone_heads: int, decoder_heads: int) -> dict[str, PyTree]:
    """{"params", "batch_stats"} of a `SegmentationModel` with either decoder.

    Heads are the attention heads of the image tower and of the semantic layers (a DeepLabV3+ head has
    none). The frozen guidance tower that published checkpoints carry ("clip_encoder.") is no part of
    the segmenter and left out: `import_backbone` reads it.
    """
    parts = {prefix: below(state, prefix) for prefix in (BACKBONE, DECODER, CONV_ENCODER)}
    known = (*parts, GUIDANCE)
    rest = {name: array for name, array in state.items() if not name.startswith(known)}
    convert(rest, [], source="the segmenter")  # raises for every name outside the parts
    params: dict[str, PyTree] = {}
    statistics: dict[str, PyTree] = {}
    if parts[BACKBONE]:
        params["backbone"] = import_backbone(parts[BACKBONE], num_heads=backbone_heads)
    if any(re.match(r"c1_proj\.|aspp\.b\d|head\.\d", name) for name in parts[DECODER]):
        params["decoder"], statistics["decoder"] = import_deeplab_head(parts[DECODER])
    elif parts[DECODER]:
        params["decoder"] = import_decoder(parts[DECODER], num_heads=decoder_heads)
    if parts[CONV_ENCODER]:
        params["conv_encoder"], statistics["conv_encoder"] = import_conv_encoder(
            parts[CONV_ENCODER]
        )
    return {"params": params, "batch_stats": statistics}


def vlg_rules(num_heads: int) -> tuple[Rule, ...]:
    """How the published decoder's names and layouts become ours."""
    torch_block, block = r"layers\.(\d+)\.transformer", r"semantic_\1/block"
    return (
        *layer("conv1", "conv1", conv),
        *conv_norm(r"aspp\.aspp_convs\.(\d+)\.0", r"aspp\.aspp_convs\.(\d+)\.1", r"aspp/branch_\1"),
        *conv_norm(
            r"aspp\.aspp_convs\.\d+\.gap\.1", r"aspp\.aspp_convs\.\d+\.gap\.2", "aspp/pooled"
        ),
        *conv_norm(r"aspp\.project\.0", r"aspp\.project\.1", "aspp/project"),
        *norm(rf"{torch_block}\.ln1", f"{block}/norm1"),
        *attention(rf"{torch_block}\.attn\.attn", f"{block}/attention", num_heads=num_heads),
        *norm(rf"{torch_block}\.ln2", f"{block}/norm2"),
        *layer(rf"{torch_block}\.ffn\.layers\.0\.0", f"{block}/mlp_in"),
        *layer(rf"{torch_block}\.ffn\.layers\.1", f"{block}/mlp_out"),
        *layer(r"text_proj\.0", "text_projection"),
        *layer(r"skip_proj\.(\d+)\.0", r"skip_projection_\1", conv),
        *layer(r"up(\d+)\.up", r"up\1/up", upsample),
        *conv_norm(r"up(\d+)\.conv\.0", r"up(\d+)\.conv\.1", r"up\1/conv1"),
        *conv_norm(r"up(\d+)\.conv\.3", r"up(\d+)\.conv\.4", r"up\1/conv2"),
        *layer("head", "head", conv),
    )


DEEPLAB_RULES = (
    *pyramid("aspp", "aspp"),
    *conv_batch_norm(r"c1_proj\.0", r"c1_proj\.1", "low_projection"),
    *conv_batch_norm(r"head\.0", r"head\.1", "fuse1"),
    *conv_batch_norm(r"head\.3", r"head\.4", "fuse2"),
    *layer(r"head\.6", "params/classifier", conv),
)

RESNET_RULES = (
    *conv_batch_norm(r"stem\.0", r"stem\.1", "stem/conv1"),
    *conv_batch_norm(r"stem\.3", r"stem\.4", "stem/conv2"),
    *conv_batch_norm(r"stem\.6", r"stem\.7", "stem/conv3"),
    *residual_block(r"layer1\.(\d+)", r"block_\1"),
)
