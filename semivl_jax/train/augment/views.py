"""From the crops that the host sends to what the networks see.

In: a `Batch` of uint8 crops [b, s, s, 3] with labels or valid sizes. Out: `Views`: float32 images normalised
with the ImageNet statistics (about -2.2 … 2.7), int32 labels, boolean ignore maps and CutMix boxes. Two
strong views and the label share the flip of their weak view, so that pixels correspond.

Order of operations, after the host's scaling, cropping and black padding: flip, then (strong views only)
colour jitter, grey, blur, then normalisation; padding is altered like image. Every image of every stream
draws independently of the others. Source: docs/semivl.md 6 and 9.18.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Shaped, UInt8

from semivl_jax.models.image_normalization import normalize
from semivl_jax.train.augment import blur, color, cutmix
from semivl_jax.types import Batch, Key, StreamViews, Views

FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
JITTER_STRENGTH = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25}
GRAY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)  # pixels


def make_views(key: Key, batch: Batch, *, flip: bool = True) -> Views:
    """All views of a training step's data; equal keys give equal views.

    A batch without further streams has neither their views nor boxes.
    """
    image, label = batch.labelled.image, batch.labelled.label.astype(jnp.int32)
    if flip:
        flipped = _draw_flips(_keys_for(key, "labelled")[0], image.shape[0])
        image, label = flip_where(flipped, image), flip_where(flipped, label)
    views = Views(x=normalize(image.astype(jnp.float32)), y=label)
    if not batch.streams:
        return views

    # All streams (and both boxes) go through one vmapped function, so they are compiled once.
    keys = _keys_for(key, *batch.streams)
    drawn = jax.vmap(lambda *arrays: _stream_views(*arrays, flip=flip))(
        keys,
        jnp.stack([stream.image for stream in batch.streams.values()]),
        jnp.stack([stream.size for stream in batch.streams.values()]),
    )
    streams = {}
    for i, (name, stream) in enumerate(batch.streams.items()):
        label = None if stream.label is None else stream.label.astype(jnp.int32)
        if flip and label is not None:
            label = flip_where(_draw_flips(keys[i], label.shape[0]), label)
        arrays = {part: array[i] for part, array in drawn.items()}
        streams[name] = StreamViews(**arrays, label=label)
    count, size = image.shape[:2]
    boxes = jax.vmap(lambda one: cutmix.cutmix_boxes(one, count, size=size))
    box1, box2 = boxes(_keys_for(key, "box1", "box2"))
    return views.replace(streams=streams, boxes={"s1": box1, "s2": box2})


def _stream_views(
    key: Key, image: UInt8[Array, "b s s 3"], valid: Int32[Array, "b 2"], *, flip: bool
) -> dict[str, Array]:
    """One weak and two strong views of a stream's crops, and the padding that they share."""
    ignore = padding_map(valid, size=image.shape[1])
    if flip:
        flipped = _draw_flips(key, image.shape[0])
        image, ignore = flip_where(flipped, image), flip_where(flipped, ignore)
    weak = image.astype(jnp.float32)
    strong = jax.vmap(strong_view, in_axes=(0, None))(_keys_for(key, "s1", "s2"), weak)
    s1, s2 = (normalize(one) for one in strong)
    return {"w": normalize(weak), "s1": s1, "s2": s2, "ignore": ignore}


def strong_view(key: Key, images: Float32[Array, "b h w 3"]) -> Float32[Array, "b h w 3"]:
    """Jitter, grey and blur, each with its own probability; grey levels in [0, 255] in and out."""
    jitter_key, choice_key = _keys_for(key, "jitter", "choices")
    jitter = color.draw_jitter(jitter_key, images.shape[0], **JITTER_STRENGTH)
    # Entry [i, j] depends on the key, i and j, not on the size of the batch.
    use_jitter, use_gray, use_blur, place = jax.random.uniform(choice_key, (images.shape[0], 4)).T
    jittered = color.color_jitter(images, jitter)
    images = _choose(use_jitter < JITTER_PROBABILITY, jittered, images)
    images = _choose(use_gray < GRAY_PROBABILITY, color.grayscale(images), images)
    low, high = BLUR_SIGMA
    sigma = jnp.where(use_blur < BLUR_PROBABILITY, low + place * (high - low), 0.0)
    return blur.gaussian_blur(images, sigma, max_sigma=high)


def padding_map(valid: Int32[Array, "b 2"], *, size: int) -> Bool[Array, "b s s"]:
    """True below the first `valid[:, 0]` rows and right of the first `valid[:, 1]` columns."""
    place = jnp.arange(size)[None, :]
    rows, columns = place >= valid[:, 0, None], place >= valid[:, 1, None]
    return rows[:, :, None] | columns[:, None, :]


def flip_where(
    flipped: Bool[Array, " b"], maps: Shaped[Array, "b h w *c"]
) -> Shaped[Array, "b h w *c"]:
    """Mirrors the chosen images horizontally."""
    return _choose(flipped, maps[:, :, ::-1], maps)


def _choose(
    which: Bool[Array, " b"], yes: Shaped[Array, "b *rest"], no: Shaped[Array, "b *rest"]
) -> Shaped[Array, "b *rest"]:
    return jnp.where(which.reshape(which.shape + (1,) * (yes.ndim - 1)), yes, no)


def _draw_flips(key: Key, count: int) -> Bool[Array, " b"]:
    return jax.random.uniform(_keys_for(key, "flip")[0], (count,)) < FLIP_PROBABILITY


def _keys_for(key: Key, *purposes: str) -> Key:
    """Keys by name, [len(purposes)]: a new purpose leaves what the others draw as it is."""
    names = jnp.asarray([zlib.crc32(purpose.encode()) for purpose in purposes], jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, names)
