"""From a configuration to a model: which encoder meets which decoder, at which sizes.

Training, evaluation and prediction build their `Segmenter` here and nowhere else, so that weights of a
run always find the model that they belong to.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.resnet import ResNetV1c
from semivl_jax.models.segmenter import Segmenter
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.types import ClassText, PyTree


def segmenter(config: ConfigDict, *, num_classes: int, clip_sizes: dict[str, int]) -> Segmenter:
    """The model that a configuration describes.

    `clip_sizes` are the constructor arguments of the CLIP image tower (`weights.towers.Clip.image`).
    ValueError for taps that the tower does not have or the decoder cannot use.
    """
    dtype = jnp.dtype(config.dtype)
    conv_encoder = None
    if config.model.conv_encoder == "resnet101_v1c":
        conv_encoder = ResNetV1c(dtype=dtype)
    decoder: nn.Module
    if config.model.decoder == "vlg":
        decoder = VLGDecoder(
            **config.vlg_decoder, use_conv_features=conv_encoder is not None, dtype=dtype
        )
    else:
        decoder = DeepLabHead(num_classes, **config.deeplab_decoder, dtype=dtype)
    return Segmenter(
        backbone=clip_tower(config, clip_sizes, taps=_taps(config, clip_sizes["depth"])),
        decoder=decoder,
        conv_encoder=conv_encoder,
        crop=config.data.crop,
        renormalize=config.model.renormalize,
    )


def clip_tower(
    config: ConfigDict, clip_sizes: dict[str, int], *, taps: tuple[int, ...]
) -> VisionTransformer:
    """CLIP's image tower at the grid of the training crop."""
    grid = (config.data.crop // clip_sizes["patch_size"],) * 2
    return VisionTransformer(**clip_sizes, grid=grid, taps=taps, dtype=jnp.dtype(config.dtype))


def window_network(
    segmenter: Segmenter, text: ClassText | None
) -> Callable[[PyTree, jax.Array], jax.Array]:
    """(variables, normalised windows [w, h, w', 3]) -> logits of the crop's square [w, crop, crop, n]."""

    def apply(variables: PyTree, images: jax.Array) -> jax.Array:
        features = segmenter.apply(variables, images, method="encode")
        return segmenter.apply(variables, features, text, method="decode")

    return apply


def padding_patch(segmenter: Segmenter) -> int | None:
    """Whole patches that the host may fill a window up to, or None where that would change its logits.

    The tower itself pads with zeros (METHOD 1.1), before which an image is renormalised or convolved.
    """
    plain = segmenter.conv_encoder is None and not segmenter.renormalize
    return segmenter.backbone.patch_size if plain else None


def _taps(config: ConfigDict, depth: int) -> tuple[int, ...]:
    taps = tuple(config.model.taps)
    if not taps or taps != tuple(sorted(set(taps))) or taps[0] < 0 or taps[-1] > depth:
        raise ValueError(
            f"model.taps = {taps} must rise and end at {depth} or before, because the tower "
            f"has {depth} blocks ({depth} means the dense embedding)"
        )
    if config.model.decoder == "vlg" and taps[-1] != depth:
        raise ValueError(
            f"model.taps = {taps} lack the dense embedding, which model.decoder = 'vlg' compares with "
            f"words; end them with {depth}"
        )
    return taps
