"""What the student's forward passes draw besides the views: channel dropout and dropout inside of layers.

Enter: a PRNG key and the shapes of the features; leave: `Noise`, whose parts are None where the recipe does
without. Two kinds of channel dropout exist:

- `feature` (UniMatch, SemiVL; METHOD 4.4): a perturbed copy of the weak view's features, every map and image
  with a mask of its own;
- `complementary` (UniMatch V2, arXiv 2410.10777): the features of the two strong views themselves, where
  one keeps, doubled, the channels that the other drops. The mask of an image is the same for all of its
  maps, and half of the images keep all channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float32

from semivl_jax.models import segmenter as segmenter_lib
from semivl_jax.train.recipe import Recipe
from semivl_jax.types import Features, Key

Masks = tuple[Bool[Array, "*parts b 1 1 _"], ...]
Factors = tuple[Float32[Array, "*parts b 1 1 _"], ...]


@struct.dataclass
class Noise:
    """Draws of one step, for a batch or for its parts along a first axis.

    masks    channels that survive in x and w, one after the other (2b images); of x only a decoder
             with batch statistics makes use
    factors  0, 1 or 2 for the channels of s1 and of s2
    dropout  key of what layers drop by themselves
    """

    masks: Masks | None = None
    factors: tuple[Factors, Factors] | None = None
    dropout: Key | None = None


def draw_noise(key: Key, recipe: Recipe, features: Features) -> Noise:
    """Noise for a batch whose unlabelled images have `features` (arrays or shapes)."""
    masks_key, factors_key, dropout_key = jax.random.split(key, 3)
    masks = factors = None
    if recipe.perturbation == "feature":
        twice = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((2 * leaf.shape[0], *leaf.shape[1:]), leaf.dtype),
            features,
        )
        masks = segmenter_lib.channel_masks(masks_key, twice, rate=recipe.perturbation_rate)
    if recipe.perturbation == "complementary":
        factors = complementary_factors(factors_key, features)
    dropout = None if recipe.dropout_passes == "none" else dropout_key
    return Noise(masks=masks, factors=factors, dropout=dropout)


def complementary_factors(key: Key, features: Features) -> tuple[Factors, Factors]:
    """Factors of the channels of two views that add up to 2 everywhere.

    Each is 0 or 2 with equal probability; half of the images (rounded down) have 1 throughout. Maps with
    the same number of channels share an image's factors.
    """
    kept_key, *keys = jax.random.split(key, 1 + len(features.maps))
    count = features.maps[0].shape[0]
    kept = jax.random.permutation(kept_key, count) < count // 2
    widths = {x.shape[-1]: k for x, k in zip(features.maps, keys, strict=True)}

    def draw(width: int) -> Float32[Array, "b 1 1 c"]:
        doubled = 2.0 * jax.random.bernoulli(widths[width], 0.5, (count, 1, 1, width))
        return jnp.where(kept[:, None, None, None], 1.0, doubled)

    first = tuple(draw(x.shape[-1]) for x in features.maps)
    return first, tuple(2.0 - factor for factor in first)


def scale(features: Features, factors: Factors) -> Features:
    """Features with every channel of every map multiplied by its factor."""
    maps = [x * factor.astype(x.dtype) for x, factor in zip(features.maps, factors, strict=True)]
    return features.replace(maps=tuple(maps))
