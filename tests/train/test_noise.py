"""Complementary channel dropout of UniMatch V2, by its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train import noise
from semivl_jax.train.recipe import Recipe
from semivl_jax.types import Features

FEATURES = Features(maps=tuple(jnp.ones((7, 2, 3, 64)) for _ in range(4)))


def test_one_view_keeps_doubled_what_the_other_drops():
    first, second = noise.complementary_factors(jax.random.key(0), FEATURES)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one + other, 2.0)
        np.testing.assert_array_equal(one, first[0])  # one mask for all maps of an image
    by_image = np.asarray(first[0]).reshape(7, 64)
    untouched = (by_image == 1).all(axis=1)
    assert untouched.sum() == 7 // 2
    dropped = by_image[~untouched]
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert 0.35 < (dropped == 0).mean() < 0.65
    assert len(np.unique(dropped, axis=0)) == len(dropped)


def test_scale_multiplies_every_map_by_its_factors():
    first, _ = noise.complementary_factors(jax.random.key(1), FEATURES)
    scaled = noise.scale(FEATURES, first)
    for factor, leaf in zip(first, scaled.maps, strict=True):
        np.testing.assert_array_equal(leaf, np.broadcast_to(factor, leaf.shape))


@pytest.mark.parametrize(
    ("fields", "present"),
    [
        ({}, {"masks"}),
        ({"perturbation": "complementary"}, {"factors"}),
        ({"perturbation": "none", "dropout_passes": "all"}, {"dropout"}),
    ],
)
def test_only_what_the_recipe_needs_is_drawn(fields, present):
    drawn = noise.draw_noise(jax.random.key(2), Recipe(total_steps=1, **fields), FEATURES)
    assert {name for name, value in vars(drawn).items() if value is not None} == present
    if "masks" in present:
        assert all(mask.shape == (14, 1, 1, 64) for mask in drawn.masks)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"s1": 0.25, "s2": 0.25, "fp": 0.5}),
        ({"perturbation": "complementary"}, {"s1": 0.5, "s2": 0.5}),
        ({"perturbation": "none", "strong_views": 1}, {"s1": 1.0}),
    ],
)
def test_shares_of_the_views_are_the_published_ones(fields, expected):
    assert Recipe(total_steps=1, **fields).view_weights == expected
