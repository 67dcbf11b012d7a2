"""From the crops that the host sends to what the networks see.

In: a `Batch` of uint8 crops [b, s, s, 3] with labels or valid sizes. Out: `Views`: float32 images normalised
with the ImageNet statistics (about -2.2 … 2.7), int32 labels, boolean ignore maps and CutMix boxes. Two
strong views share the flip of their weak view, so that pixels correspond.

Order of operations, after the host's scaling, cropping and black padding: flip, then (strong views only)
colour jitter, grey, blur, then normalisation; padding is altered like image. Every image of every stream
draws independently of the others. Source: METHOD section 6 and trap 18.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Shaped

from semivl_jax.augment import blur, color, cutmix
from semivl_jax.types import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    Key,
    UnlabelledBatch,
    UnlabelledViews,
    Views,
)

FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
JITTER_STRENGTH = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25}
GRAY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)  # pixels


def make_views(key: Key, batch: Batch, *, flip: bool = True) -> Views:
    """All views of a training step's data; equal keys give equal views.

    A batch without unlabelled crops has neither unlabelled views nor boxes. Without partner crops the
    partner is the reversed batch, which the step takes after drawing: the boxes are there all the same.
    """
    x_key = _key_for(key, "labelled")
    image, label = batch.labelled.image, batch.labelled.label.astype(jnp.int32)
    if flip:
        flipped = _draw_flips(x_key, image.shape[0])
        image, label = flip_where(flipped, image), flip_where(flipped, label)
    views = Views(x=normalize(image.astype(jnp.float32)), y=label)
    if batch.unlabelled is None:
        return views

    count, size = batch.unlabelled.image.shape[:2]
    partner = None
    if batch.partner is not None:
        partner = unlabelled_views(_key_for(key, "partner"), batch.partner, flip=flip)
    return views.replace(
        unlabelled=unlabelled_views(_key_for(key, "unlabelled"), batch.unlabelled, flip=flip),
        partner=partner,
        box1=cutmix.cutmix_boxes(_key_for(key, "box1"), count, size=size),
        box2=cutmix.cutmix_boxes(_key_for(key, "box2"), count, size=size),
    )


def unlabelled_views(key: Key, batch: UnlabelledBatch, *, flip: bool = True) -> UnlabelledViews:
    """One weak and two strong views, and the padding that all three share."""
    image = batch.image
    ignore = padding_map(batch.size, size=image.shape[1])
    if flip:
        flipped = _draw_flips(key, image.shape[0])
        image, ignore = flip_where(flipped, image), flip_where(flipped, ignore)
    weak = image.astype(jnp.float32)
    return UnlabelledViews(
        w=normalize(weak),
        s1=normalize(strong_view(_key_for(key, "s1"), weak)),
        s2=normalize(strong_view(_key_for(key, "s2"), weak)),
        ignore=ignore,
    )


def strong_view(key: Key, images: Float32[Array, "b h w 3"]) -> Float32[Array, "b h w 3"]:
    """Jitter, grey and blur, each with its own probability; grey levels in [0, 255] in and out."""
    count = images.shape[0]
    jitter = color.draw_jitter(_key_for(key, "jitter"), count, **JITTER_STRENGTH)
    jittered = color.color_jitter(images, jitter)
    images = _choose(
        _coins(_key_for(key, "use jitter"), count, JITTER_PROBABILITY), jittered, images
    )

    gray = _coins(_key_for(key, "use gray"), count, GRAY_PROBABILITY)
    images = _choose(gray, color.grayscale(images), images)

    low, high = BLUR_SIGMA
    sigma = _uniforms(_key_for(key, "sigma"), count) * (high - low) + low
    blurred = _coins(_key_for(key, "use blur"), count, BLUR_PROBABILITY)
    return blur.gaussian_blur(images, jnp.where(blurred, sigma, 0.0), max_sigma=high)


def normalize(images: Float32[Array, "b h w 3"]) -> Float32[Array, "b h w 3"]:
    """Grey levels in [0, 255] to zero mean and unit deviation over ImageNet."""
    mean, std = jnp.asarray(IMAGENET_MEAN), jnp.asarray(IMAGENET_STD)
    return (images / 255.0 - mean[None, None, None, :]) / std[None, None, None, :]


def padding_map(valid: Int32[Array, "b 2"], *, size: int) -> Bool[Array, "b s s"]:
    """True below the first `valid[:, 0]` rows and right of the first `valid[:, 1]` columns."""
    place = jnp.arange(size)[None, :]
    rows, columns = place >= valid[:, 0, None], place >= valid[:, 1, None]
    return rows[:, :, None] | columns[:, None, :]


def flip_where(
    flipped: Bool[Array, " b"], maps: Shaped[Array, "b h w *c"]
) -> Shaped[Array, "b h w *c"]:
    """Mirror left and right where told."""
    return _choose(flipped, maps[:, :, ::-1], maps)


def _choose(
    which: Bool[Array, " b"], yes: Shaped[Array, "b *rest"], no: Shaped[Array, "b *rest"]
) -> Shaped[Array, "b *rest"]:
    return jnp.where(which.reshape(which.shape + (1,) * (yes.ndim - 1)), yes, no)


def _draw_flips(key: Key, count: int) -> Bool[Array, " b"]:
    return _coins(_key_for(key, "flip"), count, FLIP_PROBABILITY)


def _coins(key: Key, count: int, probability: float) -> Bool[Array, " b"]:
    return _uniforms(key, count) < probability


def _uniforms(key: Key, count: int) -> Float32[Array, " b"]:
    """One key per image, so that image i draws the same whatever the size of the batch."""
    return jax.vmap(jax.random.uniform)(jax.random.split(key, count))


def _key_for(key: Key, purpose: str) -> Key:
    """Keys by name: a new purpose leaves what the others draw as it is."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))
