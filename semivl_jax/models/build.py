"""Builds the model of a configuration, for training, evaluation and prediction.

It reads `config.model`, `config.guidance`, the decoders' sections, `config.dtype` and `config.data.crop`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from semivl_jax.models import mobile, resnet, vit
from semivl_jax.models.atm import MaskDecoder
from semivl_jax.models.clip_guidance import Guidance
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.dpt import DPTHead
from semivl_jax.models.mobile import MobileNet
from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.models.two_towers import TwoDecoders, TwoStudents, TwoTowers
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.types import ClassText, PyTree

BACKBONES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "clip_vit": (VisionTransformer, vit.CLIP),
    "prompted_clip_vit": (VisionTransformer, vit.PROMPTED_CLIP),
    "imagenet_vit": (VisionTransformer, vit.IMAGENET_B16),
    "dinov2_vits14": (VisionTransformer, vit.DINOV2_S14),
    "dinov2_vitb14": (VisionTransformer, vit.DINOV2_B14),
    "dinov3_vits16": (VisionTransformer, vit.DINOV3_S16),
    "dinov3_vits16plus": (VisionTransformer, vit.DINOV3_S16_PLUS),
    "dinov3_vitb16": (VisionTransformer, vit.DINOV3_B16),
    "dinov3_vitl16": (VisionTransformer, vit.DINOV3_L16),
    "augreg_b16": (VisionTransformer, vit.AUGREG_B16),
    "siglip_b16": (VisionTransformer, vit.SIGLIP_B16),
    "resnet50": (ResNet, {"blocks": (3, 4, 6, 3)}),
    "resnet101": (ResNet, {"blocks": (3, 4, 23, 3)}),
    "resnet18": (ResNet, resnet.RESNET18),
    "efficientnet_lite0": (MobileNet, {**mobile.EFFICIENTNET_LITE0, "tf": True}),
    "timm_efficientnet_lite0": (MobileNet, mobile.EFFICIENTNET_LITE0),
    "mobilenet_v2": (MobileNet, mobile.MOBILENET_V2),
}
"""`model.backbone` -> constructor and arguments. CLIP's sizes come with its weights; without a `grid` it is
that of the training crop."""

CLIP_BACKBONES = ("clip_vit", "prompted_clip_vit")
TEXT_DECODERS = ("vlg", "atm")
"""Values of `model.decoder` that compare pixels with text embeddings, or with queries."""


def needs_text(model: ConfigDict) -> bool:
    """Whether the model compares pixels with text embeddings."""
    return model.decoder in TEXT_DECODERS and model.similarity != "queries"


def needs_clip(model: ConfigDict) -> bool:
    """Whether a part of the model is CLIP's: the image tower, or text embeddings in the decoder."""
    return model.backbone in CLIP_BACKBONES or needs_text(model)


def segmenter(
    config: ConfigDict, *, num_classes: int, clip_sizes: dict[str, Any]
) -> SegmentationModel:
    """The model that a configuration describes.

    `clip_sizes` are the constructor arguments of the CLIP image tower (`weights.towers.Clip.image`), used
    by its backbones only. ValueError for `out_indices` that the tower does not have or the decoder cannot
    use.
    """
    model = config.model
    conv_encoder = None
    if model.conv_encoder == "resnet101_v1c":
        conv_encoder = ResNetV1c(dtype=jnp.dtype(config.dtype))
    encoder = backbone(config, clip_sizes)
    make, more = SegmentationModel, {}
    if model.similarity == "both":
        make, more = TwoStudents, {"output": model.output}
    return make(
        backbone=encoder,
        decoder=_decoder(config, encoder, num_classes),
        conv_encoder=conv_encoder,
        crop=config.data.crop,
        renormalize=model.renormalize,
        frozen_batch_norm=model.frozen_batch_norm,
        **more,
    )


def backbone(config: ConfigDict, clip_sizes: dict[str, Any]) -> nn.Module:
    """The image encoder. ValueError for `out_indices` that it does not have."""
    model, dtype = config.model, jnp.dtype(config.dtype)
    make, options = BACKBONES[model.backbone]
    if make is MobileNet and model.decoder == "dpt":
        options = {**options, **mobile.PYRAMID}
    if make is not VisionTransformer:
        return make(**options, dtype=dtype)
    if model.backbone == "clip_vit":
        options = {**clip_sizes, **vit.dense_kind(clip_sizes)}
        if options.get("symmetric_input") and model.renormalize:
            raise ValueError(
                "model.renormalize = True gives images the statistics of CLIP, but model.weights are of a "
                "SigLIP, which has its own; set model.renormalize = False"
            )
    elif model.backbone in CLIP_BACKBONES:
        if clip_sizes.get("map_head"):
            raise ValueError(
                f"model.backbone = {model.backbone!r} is a tower of CLIP, but model.weights are those of a "
                "SigLIP; set model.backbone = 'clip_vit' or name a CLIP in model.weights"
            )
        options = {**clip_sizes, **options}
        if "prompts" in options:
            options["prompt_depth"] = options["depth"] - 1
    elif model.tower == "tiny":
        options = {**options, **vit.TINY}
    if model.decoder == "vlg":  # as CLIP's tower
        options = {**options, "fit": "pad", "via_square": True}
    encoder = _vit(config, options, out_indices=tuple(model.out_indices))
    encoder.check_indices(name="model.out_indices")
    if model.similarity in ("clip", "both"):
        return TwoTowers(clip=_clip_beside(config, clip_sizes), dino=encoder)
    if needs_text(model) and encoder.out_indices[-1] != encoder.depth:
        raise ValueError(
            f"model.out_indices = {encoder.out_indices} lack the dense embedding, which model.decoder = "
            f"{model.decoder!r} compares with texts; end them with {encoder.depth}"
        )
    return encoder


def _clip_beside(config: ConfigDict, clip_sizes: dict[str, Any]) -> VisionTransformer:
    """CLIP's tower beside a DINO: the dense embedding, and for a student its skips."""
    if clip_sizes.get("map_head"):
        raise ValueError(
            f"model.similarity = {config.model.similarity!r} compares with a CLIP, but model.weights are of "
            "a SigLIP; name a CLIP in model.weights"
        )
    student = config.model.similarity == "both"
    indices = tuple(config.model.clip_out_indices) if student else (clip_sizes["depth"],)
    tower = _vit(config, {**clip_sizes, **vit.CLIP}, out_indices=indices)
    tower.check_indices(name="model.clip_out_indices")
    return tower


def guidance_tower(config: ConfigDict, clip_sizes: dict[str, Any]) -> VisionTransformer:
    """The frozen tower of CLIP or SigLIP that labels unlabelled images: only the dense embedding."""
    side = config.model.guidance_grid or config.data.crop // clip_sizes["patch_size"]
    options = {**clip_sizes, **vit.dense_kind(clip_sizes), "grid": (side, side)}
    return _vit(config, options, out_indices=(clip_sizes["depth"],))


def guidance(config: ConfigDict, clip_sizes: dict[str, Any]) -> Guidance:
    """How the frozen CLIP labels unlabelled images. ValueError for what a SigLIP does not have."""
    settings = config.guidance
    published = {"dense": "value", "scores": "cosine", "refine": "none"}
    for key, value in published.items():
        if clip_sizes.get("map_head") and settings[key] != value:
            raise ValueError(
                f"guidance.{key} = {settings[key]!r} is for a CLIP, but model.weights are those of a SigLIP; "
                f"set guidance.{key} = {value!r}"
            )
    return Guidance(
        tower=guidance_tower(config, clip_sizes),
        dense=settings.dense,
        scores=settings.scores,
        refine=settings.refine,
    )


def window_network(
    segmenter: SegmentationModel, text: ClassText | None
) -> Callable[[PyTree, jax.Array], jax.Array]:
    """(variables, normalised windows [w, h, w', 3]) -> logits of the crop's square [w, crop, crop, n].

    Of the windows' size [w, h, w', n] where the segmenter resizes directly to it (`via_square` off).
    """

    def apply(variables: PyTree, images: jax.Array) -> jax.Array:
        features = segmenter.apply(variables, images, method="encode")
        size = None if segmenter.via_square else images.shape[1:3]
        return segmenter.apply(variables, features, text, size=size, method="decode")

    return apply


def _vit(
    config: ConfigDict, options: dict[str, Any], *, out_indices: tuple[int, ...]
) -> VisionTransformer:
    side = config.data.crop // options["patch_size"]
    return VisionTransformer(
        **{"grid": (side, side), **options},
        out_indices=out_indices,
        dtype=jnp.dtype(config.dtype),
        remat=config.model.remat,
    )


def _decoder(config: ConfigDict, encoder: nn.Module, num_classes: int) -> nn.Module:
    name, dtype = config.model.decoder, jnp.dtype(config.dtype)
    if name == "vlg":
        conv = config.model.conv_encoder != "none"
        make = functools.partial(
            VLGDecoder, **config.vlg_decoder, use_conv_features=conv, dtype=dtype
        )
        if config.model.similarity == "both":
            queries, maps = make(num_queries=num_classes), len(encoder.dino.out_indices)
            return TwoDecoders(clip=make(), dino=queries, dino_maps=maps)
        return make(num_queries=num_classes if config.model.similarity == "queries" else 0)
    if name == "atm":
        return MaskDecoder(**config.atm_decoder, dtype=dtype)
    if name == "dpt":
        patch = None if isinstance(encoder, MobileNet) else encoder.patch_size
        return DPTHead(num_classes, **config.dpt_decoder, patch_size=patch, dtype=dtype)
    corners = not encoder.via_square
    return DeepLabHead(num_classes, **config.deeplab_decoder, align_corners=corners, dtype=dtype)
