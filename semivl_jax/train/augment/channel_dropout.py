"""Perturbation of features: dropped channels, drawn image by image, whatever else is in the batch.

In: keys [b], one per image, and `Features`. Out: `Features` of the same shapes and dtypes.

- `drop_channels` (UniMatch, SemiVL; docs/semivl.md 4.4): every map and image has a mask of its own;
- `scale_channels` (UniMatch V2, arXiv 2410.10777): the features of two strong views, where one keeps,
  doubled, the channels that the other drops. The mask of an image is the same for all of its maps of one
  width, and half of the images keep all channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from semivl_jax.types import Features, Key

Masks = tuple[Bool[Array, "b 1 1 _"], ...]


def channel_masks(keys: Key, features: Features, *, rate: float) -> Masks:
    """Which channels survive: independent per image and map, each with probability 1 - rate.

    In the order of `maps` (shallow to deep), then the convolutional map if there is one.
    """
    return tuple(
        _bernoulli(jax.vmap(jax.random.fold_in, (0, None))(keys, i), 1 - rate, x.shape[-1])
        for i, x in enumerate(_maps(features))
    )


def drop_channels(features: Features, masks: Masks, *, rate: float) -> Features:
    """Features without the masked channels, the others divided by 1 - rate; `pooled` stays."""
    maps = [
        jnp.where(mask, x / (1 - rate), jnp.zeros((), x.dtype))
        for mask, x in zip(masks, _maps(features), strict=True)
    ]
    count = len(features.maps)
    return features.replace(
        maps=tuple(maps[:count]), conv=None if features.conv is None else maps[count]
    )


def draw_complementary(key: Key, count: int) -> dict[str, Array]:
    """Draws for `count` images: `keys`, and `kept`: half of them (rounded down) keep all channels."""
    kept_key, images_key = jax.random.split(key)
    kept = jax.random.permutation(kept_key, count) < count // 2
    return {"keys": jax.random.split(images_key, count), "kept": kept}


def complementary_factors(
    draws: Mapping[str, Array], width: int
) -> tuple[Float32[Array, "b 1 1 c"], Float32[Array, "b 1 1 c"]]:
    """Factors of the channels in both views: 0 and 2, 2 and 0, or 1 and 1 for images that keep all."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(draws["keys"], width)
    doubled = 2.0 * _bernoulli(keys, 0.5, width)
    first = jnp.where(draws["kept"][:, None, None, None], 1.0, doubled)
    return first, 2.0 - first


def scale_channels(features: Features, draws: Mapping[str, Array], *, view: int) -> Features:
    """The features of strong view 0 or 1, every channel of every map multiplied by its factor."""
    maps = [
        x * complementary_factors(draws, x.shape[-1])[view].astype(x.dtype) for x in features.maps
    ]
    return features.replace(maps=tuple(maps))


def _bernoulli(keys: Key, probability: float, width: int) -> Bool[Array, "b 1 1 c"]:
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, probability, (width,)))
    return draw(keys)[:, None, None, :]


def _maps(features: Features) -> list[Array]:
    return [*features.maps, *([] if features.conv is None else [features.conv])]
