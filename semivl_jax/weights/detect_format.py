"""Table of the published formats that can be converted, and the detection of a checkpoint's format.

In: `checkpoints.Checkpoint`. Out: a `Format`: its parts (`layouts.Layout`), names that are not needed, and
the format of the converted file. Formats are detected from tensor names alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from semivl_jax.weights import clip_training, files, npz
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
    prepare   arrays and options before the conversion
    finish    the weights after it
    """

    name: str
    title: str
    holds: str
    marks: tuple[str, ...]
    without: tuple[str, ...] = ()
    parts: tuple[Part, ...]
    arrays: Rules = ()
    dropped: tuple[str, ...] = ()
    prepare: Callable[[Checkpoint, Options], tuple[State, Options]] = lambda checkpoint, options: (
        checkpoint.state,
        options,
    )
    finish: Callable[[files.Weights, Checkpoint, Options], files.Weights] = lambda weights, *_: (
        weights
    )

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
    architecture = (checkpoint.config or {}).get(
        "architecture"
    )  # in config.json of timm's repositories
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


# --- steps of single formats before and after the conversion ---


def _heads_of_training(checkpoint: Checkpoint, options: Options) -> tuple[State, Options]:
    """Attention heads as the CLIP was trained, unless the options have them."""
    # `_finish_clip` asks for the activation, when everything else is known to fit.
    known = dataclasses.replace(options, activation=options.activation or "gelu")
    found = {
        option: getattr(options, option) or clip_training.of_tower(checkpoint, tower, known).heads
        for option, tower in (("image_heads", "vision"), ("text_heads", "text"))
    }
    return checkpoint.state, dataclasses.replace(options, **found)


def _finish_clip(weights: files.Weights, checkpoint: Checkpoint, options: Options) -> files.Weights:
    """Adds activations and epsilons to the sizes, removes a square grid, exponentiates the logit scale."""
    sizes = weights.sizes
    image, text = (clip_training.of_tower(checkpoint, t, options) for t in ("vision", "text"))
    trained = [{"quick_gelu": tower.quick_gelu, "eps": tower.eps} for tower in (image, text)]
    image_sizes = {k: v for k, v in sizes["image"].items() if k != "grid" or v[0] != v[1]}
    image_sizes |= trained[0] if options.as_trained else {}
    as_openai = weights.kind == "openai_clip" and text.quick_gelu and text.eps == 1e-5
    text_sizes = sizes["text"] | ({} if as_openai else trained[1])
    _check_widths(checkpoint, image=image_sizes["out_dim"], text=text_sizes["out_dim"])
    activation = "QuickGELU" if image.quick_gelu else "GELU"
    scale = np.asarray(np.exp(np.float32(weights.tree["logit_scale"])))
    return dataclasses.replace(
        weights,
        sizes={"image": image_sizes, "text": text_sizes},
        tree={part: weights.tree[part] for part in ("image", "text")} | {"logit_scale": scale},
        notes={"trained_with": f"{activation}, LayerNorm epsilon {image.eps:g}"},
    )


def _finish_siglip(
    weights: files.Weights, checkpoint: Checkpoint, options: Options
) -> files.Weights:
    """Adds the tokenizer."""
    sizes = weights.sizes
    _check_widths(checkpoint, image=sizes["img"]["width"], text=sizes["txt"]["out_dim"])
    tokenizer = options.tokenizer or checkpoint.tokenizer
    if tokenizer is None:
        return weights
    stored = {"tokenizer": np.frombuffer(tokenizer, np.uint8)}
    return dataclasses.replace(weights, tree=weights.tree | stored)


_SIGLIP_HEADS = {768: 12, 1024: 16, 1152: 16}  # by width, as published


def _heads_of_siglip(checkpoint: Checkpoint, options: Options) -> tuple[State, Options]:
    """Attention heads as config.json says, unless the options have them; else as published."""
    patches = checkpoint.state.get("vision_model.embeddings.patch_embedding.weight")
    if patches is not None and np.ndim(patches) == 2:
        raise ValueError(
            f"{checkpoint.source} is a NaFlex SigLIP 2, for images of any aspect; convert one of fixed "
            "resolution, such as siglip2-base-patch16-512"
        )
    found = {}
    for option, part, table in (
        ("image_heads", "vision_config", "vision_model.embeddings.position_embedding.weight"),
        ("text_heads", "text_config", "text_model.embeddings.position_embedding.weight"),
    ):
        width = np.shape(checkpoint.state.get(table, np.zeros((1, 0))))[-1]
        settings = (checkpoint.config or {}).get(part)
        stated = settings.get("num_attention_heads") if isinstance(settings, dict) else None
        heads = getattr(options, option) or stated or _SIGLIP_HEADS.get(width)
        if heads is not None and (not isinstance(heads, int) or heads < 1):
            raise ValueError(
                f"{checkpoint.source}: config.json has {part}.num_attention_heads = {heads!r}, which is no "
                "number; fetch it again"
            )
        found[option] = heads
    return checkpoint.state, dataclasses.replace(options, **found)


def _check_widths(checkpoint: Checkpoint, *, image: int, text: int) -> None:
    if image != text:
        raise ValueError(
            f"{checkpoint.source}: images are embedded in {image} dimensions, texts in {text}; these are not "
            "the towers of one model"
        )


def _plain_names(checkpoint: Checkpoint, options: Options) -> tuple[State, Options]:
    return npz.plain_names(checkpoint.state, source=checkpoint.source), options


# --- the table ---

_LOGIT_SCALE = (Rule("logit_scale", "logit_scale"),)
_LAYER_SCALE = "blocks.0.ls1.gamma"


def _backbone(layout: Layout, prefix: str = "backbone.") -> Part:
    return Part(layout=layout, branch="backbone", prefix=prefix)


def _decoder(layout: Layout, sizes: str, prefix: str = "decode_head.", only: str = "*") -> Part:
    return Part(layout=layout, branch="decoder", prefix=prefix, sizes=sizes, only=only)


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
        prepare=_heads_of_training,
        finish=_finish_clip,
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
        prepare=_heads_of_training,
        finish=_finish_clip,
    ),
    Format(
        name="semivl",
        title="segmenter of SemiVL with CLIP's dense image tower",
        holds=files.SEGMENTER,
        marks=("backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"),
        parts=(
            _backbone(encoders.SEMIVL_IMAGE),
            Part(layout=encoders.RESNET_V1C, branch="conv_encoder", prefix="conv_encoder."),
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
            _backbone(encoders.RESNET),
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
    Format(
        name="resnet",
        title="residual network with ImageNet weights, stem of three convolutions",
        holds=files.BACKBONE,
        marks=("layer4.0.conv1.weight", "layer4.0.conv3.weight"),
        without=("stem.0.weight",),
        parts=(Part(layout=encoders.RESNET),),
    ),
    Format(
        name="resnet18",
        title="ResNet-18 of torchvision or timm",
        holds=files.BACKBONE,
        marks=("layer4.0.conv1.weight",),
        without=("layer4.0.conv3.weight", "stem.0.weight"),
        parts=(Part(layout=encoders.RESNET18),),
    ),
    Format(
        name="resnet_v1c",
        title="ResNet-V1c with ImageNet weights: stem and first stage",
        holds=files.BACKBONE,
        marks=("stem.0.weight", "layer1.0.conv1.weight"),
        parts=(Part(layout=encoders.RESNET_V1C),),
        dropped=("layer2.*", "layer3.*", "layer4.*", "fc.*"),
    ),
    Format(
        name="efficientnet_lite0",
        title="EfficientNet-Lite0 with TensorFlow's weights, of the package efficientnet_lite_pytorch",
        holds=files.BACKBONE,
        marks=("_conv_stem.weight", "_blocks.0._depthwise_conv.weight"),
        parts=(Part(layout=encoders.EFFICIENTNET_LITE0),),
    ),
    Format(
        name="timm_tf_efficientnet_lite0",
        title="EfficientNet-Lite0 with TensorFlow's weights, of timm",
        holds=files.BACKBONE,
        marks=("conv_stem.weight", "blocks.5.3.conv_pwl.weight"),
        parts=(Part(layout=encoders.TIMM_TF_EFFICIENTNET_LITE0),),
    ),
    Format(
        name="timm_efficientnet_lite0",
        title="EfficientNet-Lite0 with timm's own weights",
        holds=files.BACKBONE,
        marks=("conv_stem.weight", "blocks.5.3.conv_pwl.weight"),
        parts=(Part(layout=encoders.TIMM_EFFICIENTNET_LITE0),),
    ),
    Format(
        name="timm_mobilenetv2_100",
        title="MobileNetV2 of timm",
        holds=files.BACKBONE,
        marks=("conv_stem.weight", "blocks.2.2.conv_pwl.weight"),
        without=("blocks.5.3.conv_pwl.weight",),
        parts=(Part(layout=encoders.TIMM_MOBILENET_V2),),
    ),
    Format(
        name="mobilenet_v2",
        title="MobileNetV2 of torchvision",
        holds=files.BACKBONE,
        marks=("features.0.0.weight", "features.17.conv.3.weight"),
        parts=(Part(layout=encoders.MOBILENET_V2),),
    ),
    Format(
        name="imagenet_vit",
        title="ViT of timm with ImageNet weights",
        holds=files.BACKBONE,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        without=(_LAYER_SCALE,),
        parts=(Part(layout=encoders.TIMM_VIT),),
    ),
    Format(
        name="dinov2",
        title="DINOv2",
        holds=files.BACKBONE,
        marks=("patch_embed.proj.weight", _LAYER_SCALE),
        without=("storage_tokens",),
        parts=(Part(layout=encoders.DINOV2),),
    ),
    Format(
        name="dinov3",
        title="DINOv3",
        holds=files.BACKBONE,
        marks=("storage_tokens", _LAYER_SCALE),
        parts=(Part(layout=encoders.DINOV3),),
    ),
    Format(
        name="huggingface_dinov3",
        title="DINOv3 in the layout of Hugging Face",
        holds=files.BACKBONE,
        marks=("embeddings.register_tokens", "layer.0.layer_scale1.lambda1"),
        parts=(Part(layout=encoders.HUGGINGFACE_DINOV3),),
    ),
    Format(
        name="big_vision_vit",
        title="ViT of big_vision, such as AugReg's",
        holds=files.BACKBONE,
        marks=("*embedding/kernel",),
        without=("*img/embedding/kernel",),
        parts=(Part(layout=encoders.BIG_VISION_VIT),),
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
        finish=_finish_siglip,
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
        prepare=_heads_of_siglip,
        finish=_finish_siglip,
    ),
)
