"""Table of the published formats that can be converted, and the detection of a checkpoint's format.

In: `foreign_files.Checkpoint`. Out: a `Format`: its parts (`layout.Layout`), names that are not needed, and
the format of the converted file. Formats are detected from tensor names alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from semivl_jax.weights import clip_training, files, npz
from semivl_jax.weights import conv_layouts as convs
from semivl_jax.weights import decoder_layouts as decoders
from semivl_jax.weights import encoder_layouts as encoders
from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.layout import Layout, Options, Tensors
from semivl_jax.weights.rename import Rule, Rules, State
from semivl_jax.weights.tree import listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One module of a format.

    layout   its table
    branch   its branch of our tree; "": the whole tree
    prefix   of its published names
    sizes    its name in the sizes; "": as the branch
    only     the part exists if there is such a name below `prefix`
    """

    layout: Layout
    branch: str = ""
    prefix: str = ""
    sizes: str = ""
    only: str = "*"

    @property
    def key(self) -> str:
        """Name in the sizes."""
        return self.sizes or self.branch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One published format.

    name      for --format, and `kind` of the converted file
    title     for people
    holds     format of the converted file: CLIP, SIGLIP, BACKBONE or SEGMENTER of `files`
    marks     names that every checkpoint of the format has; unique together with
    without   names that none has
    parts     its modules
    arrays    rules of arrays that belong to no part
    dropped   names that are not needed
    prepare   arrays and options before the conversion, if they change
    finish    the weights after it, if they change
    """

    name: str
    title: str
    holds: str
    marks: tuple[str, ...]
    without: tuple[str, ...] = ()
    parts: tuple[Part, ...]
    arrays: Rules = ()
    dropped: tuple[str, ...] = ()
    prepare: Callable[[Checkpoint, Options], tuple[State, Options]] | None = None
    finish: Callable[[files.Weights, Checkpoint, Options], files.Weights] | None = None

    def matches(self, names: Mapping[str, Any]) -> bool:
        """Whether the names are of this format."""
        tensors = Tensors(names, source="")
        return all(map(tensors.any, self.marks)) and not any(map(tensors.any, self.without))


def detect_format(checkpoint: Checkpoint, name: str = "") -> Format:
    """The format of a checkpoint, or the one called `name`. ValueError if it is unknown or ambiguous."""
    if name:
        return by_name(name)
    if checkpoint.metadata.get("format", "").startswith("semivl_jax"):
        raise ValueError(
            f"{checkpoint.source} is a file of semivl_jax already ({checkpoint.metadata['format']}); it "
            "needs no conversion"
        )
    found = [form for form in FORMATS if form.matches(checkpoint.state)]
    # Of timm's repositories: weights that differ in nothing but how they were trained.
    architecture = (checkpoint.config or {}).get("architecture")
    found = [form for form in found if form.name == f"timm_{architecture}"] or found
    if len(found) == 1:
        return found[0]
    what = "fits several formats" if found else "is of no format that can be converted"
    choice = ", ".join(form.name for form in found) or ", ".join(names())
    raise ValueError(
        f"{checkpoint.source} {what} (its first tensors: {listed(sorted(checkpoint.state)[:6])}); if it is "
        f"one of {choice}, name it with --format"
    )


def by_name(name: str) -> Format:
    """The format of that name; ValueError if there is none."""
    for form in FORMATS:
        if form.name == name:
            return form
    raise ValueError(f"--format={name} is unknown; choose one of {', '.join(names())}")


def names() -> tuple[str, ...]:
    """Names of all formats."""
    return tuple(form.name for form in FORMATS)


def _plain_names(checkpoint: Checkpoint, options: Options) -> tuple[State, Options]:
    return npz.plain_names(checkpoint.state, source=checkpoint.source), options


_LOGIT_SCALE = (Rule("logit_scale", "logit_scale"),)
_LAYER_SCALE = "blocks.0.ls1.gamma"


def _backbone(layout: Layout, prefix: str = "backbone.") -> Part:
    return Part(layout=layout, branch="backbone", prefix=prefix)


def _decoder(layout: Layout, sizes: str, prefix: str = "decode_head.", only: str = "*") -> Part:
    return Part(layout=layout, branch="decoder", prefix=prefix, sizes=sizes, only=only)


def _encoder(name: str, title: str, layout: Layout, **rest: Any) -> Format:
    """The format of an image encoder alone."""
    part = Part(layout=layout)
    return Format(name=name, title=title, holds=files.BACKBONE, parts=(part,), **rest)


FORMATS = (
    Format(
        name="openai_clip",
        title="CLIP of OpenAI: image and text tower",
        holds=files.CLIP,
        marks=("visual.conv1.weight", "token_embedding.weight"),
        parts=(
            Part(layout=encoders.OPENAI_IMAGE, branch="image", prefix="visual."),
            Part(layout=encoders.OPENAI_TEXT, branch="text"),
        ),
        arrays=_LOGIT_SCALE,
        dropped=("input_resolution", "context_length", "vocab_size"),  # of TorchScript archives
        prepare=clip_training.heads_of_clip,
        finish=clip_training.finish_clip,
    ),
    Format(
        name="huggingface_clip",
        title="CLIP in the layout of Hugging Face: image and text tower",
        holds=files.CLIP,
        marks=("visual_projection.weight", "text_projection.weight"),
        parts=(
            Part(layout=encoders.HUGGINGFACE_IMAGE, branch="image"),
            Part(layout=encoders.HUGGINGFACE_TEXT, branch="text"),
        ),
        arrays=_LOGIT_SCALE,
        dropped=("*_model.embeddings.position_ids",),
        prepare=clip_training.heads_of_clip,
        finish=clip_training.finish_clip,
    ),
    Format(
        name="semivl",
        title="segmenter of SemiVL with CLIP's dense image tower",
        holds=files.SEGMENTER,
        marks=("backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"),
        parts=(
            _backbone(encoders.SEMIVL_IMAGE),
            Part(layout=convs.RESNET_V1C, branch="conv_encoder", prefix="conv_encoder."),
            _decoder(decoders.VLG, "vlg_decoder", only="conv1.weight"),
            _decoder(decoders.SEMIVL_DEEPLAB, "deeplab_decoder", only="head.6.weight"),
        ),
        dropped=("clip_encoder.*",),  # the frozen guidance tower
    ),
    Format(
        name="vit_baseline",
        title="segmenter of SemiVL's baseline with an ImageNet ViT",
        holds=files.SEGMENTER,
        marks=("backbone.m.patch_embed.proj.weight", "decode_head.head.6.weight"),
        parts=(
            _backbone(encoders.TIMM_VIT, "backbone.m."),
            _decoder(decoders.SEMIVL_DEEPLAB, "deeplab_decoder"),
        ),
    ),
    Format(
        name="zegclip",
        title="segmenter of SemiVL's baseline with ZegCLIP",
        holds=files.SEGMENTER,
        marks=("backbone.prompt_embeddings", "decode_head.q_proj.weight"),
        parts=(
            _backbone(encoders.ZEGCLIP_IMAGE),
            _decoder(decoders.MASK_DECODER, "mask_decoder"),
        ),
    ),
    Format(
        name="unimatch_deeplab",
        title="segmenter of UniMatch: DeepLabV3+ on a residual network",
        holds=files.SEGMENTER,
        marks=("backbone.layer4.0.conv1.weight", "classifier.weight"),
        parts=(
            _backbone(convs.RESNET),
            _decoder(decoders.UNIMATCH_DEEPLAB, "deeplab_decoder", ""),
        ),
    ),
    Format(
        name="unimatch_v2",
        title="segmenter of UniMatch V2: DPT on DINOv2",
        holds=files.SEGMENTER,
        marks=("backbone.patch_embed.proj.weight", "head.projects.0.weight"),
        parts=(
            _backbone(encoders.DINOV2),
            _decoder(decoders.DPT, "dpt_decoder", "head."),
        ),
    ),
    _encoder(
        "resnet",
        "residual network with ImageNet weights, stem of three convolutions",
        convs.RESNET,
        marks=("layer4.0.conv1.weight", "layer4.0.conv3.weight"),
        without=("stem.0.weight",),
    ),
    _encoder(
        "resnet18",
        "ResNet-18 of torchvision or timm",
        convs.RESNET18,
        marks=("layer4.0.conv1.weight",),
        without=("layer4.0.conv3.weight", "stem.0.weight"),
    ),
    _encoder(
        "resnet_v1c",
        "ResNet-V1c with ImageNet weights: stem and first stage",
        convs.RESNET_V1C,
        marks=("stem.0.weight", "layer1.0.conv1.weight"),
        dropped=("layer2.*", "layer3.*", "layer4.*", "fc.*"),
    ),
    _encoder(
        "efficientnet_lite0",
        "EfficientNet-Lite0 with TensorFlow's weights, of the package efficientnet_lite_pytorch",
        convs.EFFICIENTNET_LITE0,
        marks=("_conv_stem.weight", "_blocks.0._depthwise_conv.weight"),
    ),
    _encoder(
        "timm_tf_efficientnet_lite0",
        "EfficientNet-Lite0 with TensorFlow's weights, of timm",
        convs.TIMM_TF_EFFICIENTNET_LITE0,
        marks=("conv_stem.weight", "blocks.5.3.conv_pwl.weight"),
    ),
    _encoder(
        "timm_efficientnet_lite0",
        "EfficientNet-Lite0 with timm's own weights",
        convs.TIMM_EFFICIENTNET_LITE0,
        marks=("conv_stem.weight", "blocks.5.3.conv_pwl.weight"),
    ),
    _encoder(
        "timm_mobilenetv2_100",
        "MobileNetV2 of timm",
        convs.TIMM_MOBILENET_V2,
        marks=("conv_stem.weight", "blocks.2.2.conv_pwl.weight"),
        without=("blocks.5.3.conv_pwl.weight",),
    ),
    _encoder(
        "mobilenet_v2",
        "MobileNetV2 of torchvision",
        convs.MOBILENET_V2,
        marks=("features.0.0.weight", "features.17.conv.3.weight"),
    ),
    _encoder(
        "imagenet_vit",
        "ViT of timm with ImageNet weights",
        encoders.TIMM_VIT,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        without=(_LAYER_SCALE,),
    ),
    _encoder(
        "dinov2",
        "DINOv2",
        encoders.DINOV2,
        marks=("patch_embed.proj.weight", _LAYER_SCALE),
        without=("storage_tokens",),
    ),
    _encoder(
        "dinov3",
        "DINOv3",
        encoders.DINOV3,
        marks=("storage_tokens", _LAYER_SCALE),
    ),
    _encoder(
        "huggingface_dinov3",
        "DINOv3 in the layout of Hugging Face",
        encoders.HUGGINGFACE_DINOV3,
        marks=("embeddings.register_tokens", "layer.0.layer_scale1.lambda1"),
    ),
    _encoder(
        "big_vision_vit",
        "ViT of big_vision, such as AugReg's",
        encoders.BIG_VISION_VIT,
        marks=("*embedding/kernel",),
        without=("*img/embedding/kernel",),
        dropped=("head/*", "pre_logits/*"),
        prepare=_plain_names,
    ),
    Format(
        name="siglip",
        title="SigLIP of big_vision: image and text tower",
        holds=files.SIGLIP,
        marks=("*img/embedding/kernel",),
        parts=(
            Part(layout=encoders.BIG_VISION_VIT, branch="img", prefix="img/"),
            Part(layout=encoders.BIG_VISION_TEXT, branch="txt", prefix="txt/"),
        ),
        arrays=(Rule("t", "t"), Rule("b", "b")),
        prepare=_plain_names,
        finish=clip_training.finish_siglip,
    ),
    Format(
        name="huggingface_siglip",
        title="SigLIP or SigLIP 2 in the layout of Hugging Face: image and text tower",
        holds=files.SIGLIP,
        marks=("vision_model.head.probe", "text_model.head.weight"),
        parts=(
            Part(layout=encoders.HUGGINGFACE_SIGLIP_IMAGE, branch="img"),
            Part(layout=encoders.HUGGINGFACE_SIGLIP_TEXT, branch="txt"),
        ),
        arrays=(Rule("logit_scale", "t"), Rule("logit_bias", "b")),
        dropped=("*_model.embeddings.position_ids",),
        prepare=clip_training.heads_of_siglip,
        finish=clip_training.finish_siglip,
    ),
)
