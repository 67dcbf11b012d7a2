"""Tables of published decoders: SemiVL's, DeepLabV3+ of SemiVL's baselines and of UniMatch, ZegCLIP's, DPT.

One `DecoderLayout` each. Rules drop what the published models do not use.
"""

from __future__ import annotations

import dataclasses

from flax import linen as nn

from semivl_jax.models.atm import MaskDecoder
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.dpt import DPTHead
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.weights.layout import DecoderLayout, Options, Sizes, Tensors, num_heads
from semivl_jax.weights.rename import (
    Rule,
    Rules,
    attention,
    conv,
    conv_batch_norm,
    conv_norm,
    layer,
    norm,
    transposed_conv,
)

_VLG_HEADS, _MASK_HEADS = 4, 8
"""Attention heads of every published model."""


def _heads(tensors: Tensors, width: int, given: int) -> int:
    return num_heads(width, given, "decoder_heads", source=tensors.source)


# --- SemiVL's language-guided decoder ---


def _vlg_sizes(tensors: Tensors, sizes: Sizes, options: Options) -> Sizes:
    skips = range(tensors.count("skip_proj.#.0.weight"))
    width = sizes["channels"] + sizes["text_channels"]
    return {
        "up_channels": [tensors.axis(f"up{i + 1}.conv.0.weight", "out _ _ _") for i in skips],
        "skip_channels": [tensors.axis(f"skip_proj.{i}.0.weight", "out _ _ _") for i in skips],
        "num_heads": _heads(tensors, width, options.decoder_heads or _VLG_HEADS),
    }


def _vlg_decoder(sizes: Sizes, conv_features: int) -> nn.Module:
    # Parameters do not depend on pooling and dilations, only on the number of branches.
    sizes = dict(sizes)
    dilations = tuple(range(1, 1 + sizes.pop("branches")))
    return VLGDecoder(
        **sizes, dilations=dilations, pool_size=None, use_conv_features=bool(conv_features)
    )


_OLD, _NEW = "layers.#.transformer", "semantic_#/block"
VLG = DecoderLayout(
    rules=(
        *layer("conv1", "conv1", conv, axes="channels _ kernel_size _"),
        *conv_norm("aspp.aspp_convs.#.0", "aspp.aspp_convs.#.1", "aspp/branch_#", count="branches"),
        *conv_norm("aspp.aspp_convs.#.gap.1", "aspp.aspp_convs.#.gap.2", "aspp/pooled"),
        *conv_norm("aspp.project.0", "aspp.project.1", "aspp/project"),
        *norm(f"{_OLD}.ln1", f"{_NEW}/norm1"),
        *attention(f"{_OLD}.attn.attn.in_proj_", f"{_OLD}.attn.attn.out_proj", f"{_NEW}/attention"),
        *norm(f"{_OLD}.ln2", f"{_NEW}/norm2"),
        *layer(f"{_OLD}.ffn.layers.0.0", f"{_NEW}/mlp_in", axes="mlp_dim _", count="num_layers"),
        *layer(f"{_OLD}.ffn.layers.1", f"{_NEW}/mlp_out"),
        *layer("text_proj.0", "text_projection", axes="text_channels _"),
        *layer("skip_proj.#.0", "skip_projection_#", conv),
        *layer("up#.up", "up#/up", transposed_conv),
        *conv_norm("up#.conv.0", "up#.conv.1", "up#/conv1"),
        *conv_norm("up#.conv.3", "up#.conv.4", "up#/conv2"),
        *layer("head", "head", conv),
    ),
    module=_vlg_decoder,
    extra=_vlg_sizes,
    maps=lambda sizes, conv_features: 1 + len(sizes["skip_channels"]) - conv_features,
)

# --- DeepLabV3+ ---


def _aspp(name: str) -> Rules:
    """UniMatch's ASPP module -> `ASPP` with batch norm."""
    return (
        *conv_batch_norm(f"{name}.b#.0", f"{name}.b#.1", "aspp/branch_#"),
        *conv_batch_norm(f"{name}.b#.gap.1", f"{name}.b#.gap.2", "aspp/pooled"),
        *conv_batch_norm(f"{name}.project.0", f"{name}.project.1", "aspp/project"),
    )


def _deeplab_head(sizes: Sizes, _: int) -> nn.Module:
    return DeepLabHead(**sizes)


SEMIVL_DEEPLAB = DecoderLayout(
    rules=(
        *_aspp("aspp"),
        *conv_batch_norm("c1_proj.0", "c1_proj.1", "low_projection", axes="low_channels _ _ _"),
        *conv_batch_norm("head.0", "head.1", "fuse1", axes="channels _ _ _"),
        *conv_batch_norm("head.3", "head.4", "fuse2"),
        *layer("head.6", "classifier", conv, axes="num_classes _ _ _"),
    ),
    module=_deeplab_head,
    maps=lambda *_: 2,
)
UNIMATCH_DEEPLAB = DecoderLayout(
    rules=(
        *_aspp("head"),
        *conv_batch_norm("reduce.0", "reduce.1", "low_projection", axes="low_channels _ _ _"),
        *conv_batch_norm("fuse.0", "fuse.1", "fuse1"),
        *conv_batch_norm("fuse.3", "fuse.4", "fuse2"),
        *layer("classifier", "classifier", conv, axes="num_classes channels _ _"),
    ),
    module=_deeplab_head,
    maps=lambda *_: 2,
)

# --- ZegCLIP's mask decoder ---

_LAYER = "decoder_1.layers.#"
MASK_DECODER = DecoderLayout(
    rules=(
        *attention(
            (
                f"{_LAYER}.multihead_attn.q.",
                f"{_LAYER}.multihead_attn.k.",
                f"{_LAYER}.multihead_attn.v.",
            ),
            f"{_LAYER}.multihead_attn.proj",
            "layer_#/attention",
        ),
        *layer(f"{_LAYER}.linear1", "layer_#/mlp_in", count="num_layers"),
        *layer(f"{_LAYER}.linear2", "layer_#/mlp_out"),
        *norm(f"{_LAYER}.norm2", "layer_#/norm1"),
        *norm(f"{_LAYER}.norm3", "layer_#/norm2"),
        *layer("q_proj", "query_projection"),
        # Unused self-attention and norm, and a buffer of the criterion.
        Rule(f"{_LAYER}.self_attn.*", None),
        Rule(f"{_LAYER}.norm1.*", None),
        Rule("loss_decode.criterion.empty_weight", None),
    ),
    module=lambda sizes, _: MaskDecoder(**sizes),
    extra=lambda tensors, _, options: {
        "num_heads": _heads(
            tensors,
            tensors.axis("q_proj.weight", "out _"),
            options.decoder_heads or _MASK_HEADS,
        )
    },
    maps=lambda *_: 1,
)

# --- the DPT head of UniMatch V2 ---


def _fusion_block(number: int) -> Rules:
    """Their blocks count from 1, ours from 0, both from the finest."""
    old, new = f"scratch.refinenet{number}", f"fusion_{number - 1}"
    return (
        Rule(f"scratch.layer{number}_rn.weight", f"level_{number - 1}/kernel", conv),
        *layer(f"{old}.out_conv", f"{new}/out", conv),
        *layer(f"{old}.resConfUnit1.conv#", f"{new}/finer/conv#", conv),
        *layer(f"{old}.resConfUnit2.conv#", f"{new}/fused/conv#", conv),
    )


def _dpt_sizes(tensors: Tensors, *_: Sizes | Options) -> Sizes:
    encoder = dataclasses.replace(tensors, prefix="backbone.")
    return {
        "channels": tensors.axis("scratch.layer1_rn.weight", "out _ _ _"),
        "out_channels": [tensors.axis(f"projects.{i}.weight", "out _ _ _") for i in range(4)],
        "patch_size": encoder.axis("patch_embed.proj.weight", "_ _ patch_size _"),
    }


DPT = DecoderLayout(
    rules=(
        Rule("scratch.refinenet4.resConfUnit1.*", None),  # unused: there is no finer map
        *layer("projects.#", "tap_#", conv),
        *layer("resize_layers.0", "scale_0", transposed_conv),
        *layer("resize_layers.1", "scale_1", transposed_conv),
        *layer("resize_layers.3", "scale_3", conv),
        *(rule for number in (1, 2, 3, 4) for rule in _fusion_block(number)),
        *layer("scratch.output_conv.0", "head", conv),
        *layer("scratch.output_conv.2", "classifier", conv, axes="num_classes _ _ _"),
    ),
    module=lambda sizes, _: DPTHead(**sizes),
    extra=_dpt_sizes,
    maps=lambda *_: 4,
)
