"""ZegCLIP's criterion ("SegLossPlus"): every class is a mask of its own, scored by focal and dice loss.

In: logits [b, y, x, n] of any float dtype, resized bilinearly to the labels [b, h, w] of class indices.
Out: float32 scalars, finite whatever the labels are. As published, 255 counts as "not this class" for
every class in the focal term, the dice term knows only classes that an image shows, and both are divided
by the number of such classes, summed over the images of the global batch, but at least 1.

Source: docs/semivl.md 8 and 9.20.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Integer

from semivl_jax.models.resize import bilinear
from semivl_jax.types import IGNORE_INDEX

_ALPHA, _GAMMA = 0.25, 2


@struct.dataclass
class MaskLoss:
    """The weighted terms; the loss is their sum."""

    focal: Float32[Array, ""]
    dice: Float32[Array, ""]

    @property
    def total(self) -> Float32[Array, ""]:
        """What is minimised."""
        return self.focal + self.dice


def mask_weights(
    label: Integer[Array, "b h w"], *, scale: float | Float[Array, ""] = 1.0
) -> Float32[Array, " b"]:
    """Weight of every image: `scale` / the number of classes per image, summed over the images.

    On pseudo-labels, `scale` is the share of confident pixels: this criterion cannot weight single pixels.
    """
    classes = jnp.arange(IGNORE_INDEX, dtype=jnp.int32)
    target = label.astype(jnp.int32)[..., None] == classes[None, None, None, :]
    shown = jnp.any(target, axis=(1, 2))
    weight = jnp.asarray(scale, jnp.float32) / jnp.maximum(jnp.sum(shown), 1)
    return jnp.broadcast_to(weight, label.shape[:1])


def mask_loss(
    logits: Float[Array, "b _ _ n"],
    label: Integer[Array, "b h w"],
    weight: Float[Array, " b"],
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
) -> MaskLoss:
    """Focal and dice loss, summed over images with their `mask_weights`.

    Pseudo-labels of padding count, as published.
    """
    logits = bilinear(logits.astype(jnp.float32), label.shape[1:], align_corners=False)
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    target = label.astype(jnp.int32)[..., None] == classes[None, None, None, :]
    shown = jnp.any(target, axis=(1, 2))
    focal = jnp.sum(jnp.mean(_focal(logits, target), axis=(1, 2)) * weight[:, None])
    dice = jnp.sum(jnp.where(shown, _dice(logits, target), 0.0) * weight[:, None])
    return MaskLoss(focal=focal_weight * focal, dice=dice_weight * dice)


def _focal(
    logits: Float[Array, "b h w n"], target: Bool[Array, "b h w n"]
) -> Float[Array, "b h w n"]:
    """Sigmoid focal loss of every pixel and class."""
    signed = jnp.where(target, logits, -logits)
    weight = jnp.where(target, _ALPHA, 1 - _ALPHA)
    return weight * jax.nn.sigmoid(-signed) ** _GAMMA * jax.nn.softplus(-signed)


def _dice(logits: Float[Array, "b h w n"], target: Bool[Array, "b h w n"]) -> Float[Array, "b n"]:
    """1 − (twice the overlap + 1) / (the sum of both areas + 1)."""
    probability = jax.nn.sigmoid(logits)
    overlap = jnp.sum(jnp.where(target, probability, 0.0), axis=(1, 2))
    areas = jnp.sum(probability, axis=(1, 2)) + jnp.sum(target, axis=(1, 2))
    return 1 - (2 * overlap + 1) / (areas + 1)
