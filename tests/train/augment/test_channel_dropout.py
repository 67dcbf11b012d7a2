"""Complementary channel dropout of UniMatch V2, and independent dropout, by their properties."""

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.train.augment import channel_dropout
from semivl_jax.types import Features

FEATURES = Features(maps=tuple(jnp.ones((7, 2, 3, 64)) for _ in range(4)))


def test_one_view_keeps_doubled_what_the_other_drops():
    draws = channel_dropout.draw_complementary(jax.random.key(0), 7)
    first, second = (
        channel_dropout.scale_channels(FEATURES, draws, view=view).maps for view in (0, 1)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one + other, 2.0)
        np.testing.assert_array_equal(one, first[0])  # one mask for all maps of an image
        np.testing.assert_array_equal(one, np.broadcast_to(one[:, :1, :1], one.shape))
    by_image = np.asarray(first[0])[:, 0, 0]
    untouched = (by_image == 1).all(axis=1)
    assert untouched.sum() == 7 // 2
    dropped = by_image[~untouched]
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert 0.35 < (dropped == 0).mean() < 0.65
    assert len(np.unique(dropped, axis=0)) == len(dropped)


def test_dropped_channels_are_independent_and_the_rest_keeps_the_mean():
    keys = jax.random.split(jax.random.key(1), 7)
    masks = channel_dropout.channel_masks(keys, FEATURES, rate=0.25)
    dropped = channel_dropout.drop_channels(FEATURES, masks, rate=0.25)
    rows = np.concatenate([np.asarray(x)[:, 0, 0] for x in dropped.maps])
    np.testing.assert_allclose(np.unique(rows), [0, 4 / 3])
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert 0.2 < (rows == 0).mean() < 0.3
    # An image draws the same whatever else is in its batch.
    alone = channel_dropout.channel_masks(keys[3:4], FEATURES, rate=0.25)
    for one, all_of_them in zip(alone, masks, strict=True):
        np.testing.assert_array_equal(one[0], all_of_them[3])
