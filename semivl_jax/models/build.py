"""From a configuration to a model: which encoder meets which decoder, at which sizes.

Training, evaluation and prediction build their `SegmentationModel` here and nowhere else, so that weights of
a run always find the model that they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from semivl_jax.models import dinov2
from semivl_jax.models.big_vision import PlainViT
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.dinov2 import DinoV2
from semivl_jax.models.dpt import DPTHead
from semivl_jax.models.imagenet_vit import ImageNetViT
from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.models.zegclip import MaskDecoder, PromptedVisionTransformer
from semivl_jax.types import ClassText, PyTree

RESNET_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
CLIP_BACKBONES = ("clip_vit", "prompted_clip_vit")
VIT_SIZES = {
    "imagenet_vit": {},  # the module's defaults
    "dinov2_vits14": dinov2.SIZES["small"],
    "dinov2_vitb14": dinov2.SIZES["base"],
    "augreg_b16": {"class_token": True},
    "siglip_b16": {"class_token": False, "map_head": True},
}
"""Constructor arguments of the vision transformers that are not CLIP's."""
TINY_VIT = {"patch_size": 8, "width": 16, "depth": 4, "num_heads": 2, "mlp_dim": 32}
"""Sizes of any of them with `model.tower = "tiny"`."""


def needs_clip(model: ConfigDict) -> bool:
    """Whether the model reads anything of CLIP: its image tower, or text in the decoder."""
    return model.backbone in CLIP_BACKBONES or model.decoder in ("vlg", "atm")


def segmenter(
    config: ConfigDict, *, num_classes: int, clip_sizes: dict[str, Any]
) -> SegmentationModel:
    """The model that a configuration describes.

    `clip_sizes` are the constructor arguments of the CLIP image tower (`weights.towers.Clip.image`),
    not read where the backbone is another. ValueError for out_indices that the tower does not have or the
    decoder cannot use.
    """
    dtype, model = jnp.dtype(config.dtype), config.model
    conv_encoder = None
    if model.conv_encoder == "resnet101_v1c":
        conv_encoder = ResNetV1c(dtype=dtype)
    encoder = backbone(config, clip_sizes)
    # Their logits go straight to the size of the image, as published.
    straight = isinstance(encoder, ResNet | DinoV2)
    decoder: nn.Module
    if model.decoder == "vlg":
        decoder = VLGDecoder(
            **config.vlg_decoder, use_conv_features=conv_encoder is not None, dtype=dtype
        )
    elif model.decoder == "atm":
        decoder = MaskDecoder(**config.atm_decoder, dtype=dtype)
    elif model.decoder == "dpt":
        decoder = DPTHead(
            num_classes, **config.dpt_decoder, patch_size=encoder.patch_size, dtype=dtype
        )
    else:
        decoder = DeepLabHead(
            num_classes, **config.deeplab_decoder, align_corners=straight, dtype=dtype
        )
    return SegmentationModel(
        backbone=encoder,
        decoder=decoder,
        conv_encoder=conv_encoder,
        crop=config.data.crop,
        renormalize=model.renormalize,
        via_square=not straight,
        align_corners=straight,
    )


def backbone(config: ConfigDict, clip_sizes: dict[str, Any]) -> nn.Module:
    """The image encoder. ValueError for out_indices that it does not have."""
    dtype, model, crop = jnp.dtype(config.dtype), config.model, config.data.crop
    if model.backbone in RESNET_BLOCKS:
        return ResNet(blocks=RESNET_BLOCKS[model.backbone], dtype=dtype)
    if model.backbone == "clip_vit":
        return clip_tower(config, clip_sizes, out_indices=_out_indices(config, clip_sizes["depth"]))
    if model.backbone == "prompted_clip_vit":
        # Whatever a file says of activation and epsilon: ZegCLIP keeps CLIP's own.
        sizes = {k: v for k, v in clip_sizes.items() if k not in ("quick_gelu", "eps")}
        depth, side = sizes["depth"], crop // sizes["patch_size"]
        out_indices = _out_indices(config, depth)
        return PromptedVisionTransformer(
            **sizes,
            grid=(side, side),
            out_indices=out_indices,
            prompt_depth=depth - 1,
            dtype=dtype,
            remat=model.remat,
        )
    sizes = VIT_SIZES[model.backbone]
    if model.tower == "tiny":
        sizes = TINY_VIT | {k: v for k, v in sizes.items() if isinstance(v, bool)}
    out_indices = tuple(model.out_indices)
    if model.backbone == "imagenet_vit":
        side = crop // sizes.get("patch_size", ImageNetViT.patch_size)
        return ImageNetViT(
            **sizes, grid=(side, side), out_indices=out_indices, dtype=dtype, remat=model.remat
        )
    if model.backbone in ("augreg_b16", "siglip_b16"):
        side = crop // sizes.get("patch_size", PlainViT.patch_size)
        return PlainViT(
            **sizes, grid=(side, side), out_indices=out_indices, dtype=dtype, remat=model.remat
        )
    # The position table keeps the published size whatever the crop.
    return DinoV2(**sizes, out_indices=out_indices, dtype=dtype, remat=model.remat)


def clip_tower(
    config: ConfigDict, clip_sizes: dict[str, Any], *, out_indices: tuple[int, ...], side: int = 0
) -> VisionTransformer:
    """CLIP's image tower; its position table has `side` rows (0: the grid of the training crop)."""
    side = side or config.data.crop // clip_sizes["patch_size"]
    return VisionTransformer(
        **clip_sizes,
        grid=(side, side),
        out_indices=out_indices,
        dtype=jnp.dtype(config.dtype),
        remat=config.model.remat,
    )


def guidance_tower(config: ConfigDict, clip_sizes: dict[str, Any]) -> VisionTransformer:
    """The frozen tower that labels unlabelled images: only the dense embedding."""
    depth, side = clip_sizes["depth"], config.model.guidance_grid
    return clip_tower(config, clip_sizes, out_indices=(depth,), side=side)


def window_network(
    segmenter: SegmentationModel, text: ClassText | None
) -> Callable[[PyTree, jax.Array], jax.Array]:
    """(variables, normalised windows [w, h, w', 3]) -> logits of the crop's square [w, crop, crop, n].

    Of the windows' size [w, h, w', n] where the segmenter resizes straight to it (`via_square` off).
    """

    def apply(variables: PyTree, images: jax.Array) -> jax.Array:
        features = segmenter.apply(variables, images, method="encode")
        size = None if segmenter.via_square else images.shape[1:3]
        return segmenter.apply(variables, features, text, size=size, method="decode")

    return apply


def padding_patch(segmenter: SegmentationModel) -> int | None:
    """Whole patches that the host may fill a window up to, or None where that would change its logits.

    The dense CLIP tower itself pads with zeros (METHOD 1.1), before which an image is renormalised or
    convolved; logits of the window's size would be those of the filled window.
    """
    dense = isinstance(segmenter.backbone, VisionTransformer)
    plain = segmenter.conv_encoder is None and not segmenter.renormalize
    return segmenter.backbone.patch_size if dense and plain and segmenter.via_square else None


def _out_indices(config: ConfigDict, depth: int) -> tuple[int, ...]:
    out_indices = tuple(config.model.out_indices)
    if (
        not out_indices
        or out_indices != tuple(sorted(set(out_indices)))
        or out_indices[0] < 0
        or out_indices[-1] > depth
    ):
        raise ValueError(
            f"model.out_indices = {out_indices} must rise and end at {depth} or before, because the tower "
            f"has {depth} blocks ({depth} means the dense embedding)"
        )
    if config.model.decoder in ("vlg", "atm") and out_indices[-1] != depth:
        raise ValueError(
            f"model.out_indices = {out_indices} lack the dense embedding, which model.decoder = "
            f"{config.model.decoder!r} compares with words; end them with {depth}"
        )
    return out_indices
