import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train.augment import views
from semivl_jax.types import IMAGENET_MEAN, IMAGENET_STD
from tests.golden_files import Golden, assert_close, nhwc
from tests.train.augment.batches import batch, floats

KEY = jax.random.key(7)
make = jax.jit(views.make_views, static_argnames="flip")


def assert_equal(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def levels(normalized) -> np.ndarray:
    """Back to grey levels."""
    array = np.asarray(normalized, np.float64) * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    return np.round(array * 255.0, 3)


@pytest.mark.golden
def test_normalize():
    golden = Golden("transforms")
    normalized = views.normalize(jnp.asarray(golden["in/img"], jnp.float32)[None])
    assert_close(normalized, nhwc(golden["out/normalize"][None]), 1e-6)


@pytest.mark.golden
def test_flip_where():
    golden = Golden("transforms")
    for kind in ("img", "mask"):
        source = jnp.asarray(golden[f"in/{kind}"])[None]
        flipped = views.flip_where(jnp.array([True]), source)
        np.testing.assert_array_equal(flipped[0], golden[f"out/hflip/{kind}"])


def test_shapes_types_and_range():
    made = make(KEY, batch())
    assert made.x.shape == (16, 12, 12, 3)
    assert made.y.dtype == jnp.int32
    for stream in (made.streams["unlabelled"], made.streams["unlabelled.1"]):
        for view in (stream.w, stream.s1, stream.s2):
            assert view.dtype == jnp.float32
            grey = levels(view)
            assert grey.min() >= 0
            assert grey.max() <= 255
        assert stream.ignore.dtype == bool
    assert made.boxes["s1"].shape == made.boxes["s2"].shape == (16, 12, 12)


def test_the_same_key_gives_the_same_views_and_another_key_others():
    first, again, other = make(KEY, batch()), make(KEY, batch()), make(jax.random.key(8), batch())
    assert_equal(first, again)
    assert not np.array_equal(first.streams["unlabelled"].s1, other.streams["unlabelled"].s1)


def test_one_image_does_not_depend_on_the_batch():
    many = batch()
    few = jax.tree.map(lambda leaf: leaf[:2], many)
    assert_equal(make(KEY, few), jax.tree.map(lambda leaf: leaf[:2], make(KEY, many)))


def test_vmap_over_keys_equals_single():
    keys = jax.random.split(KEY, 2)
    data = batch(2, 8)
    # Lists of arrays: the types of a batch do not allow for one more axis.
    together = jax.jit(jax.vmap(lambda key: jax.tree.leaves(views.make_views(key, data))))(keys)
    for i in range(2):
        for many, single in zip(together, jax.tree.leaves(make(keys[i], data)), strict=True):
            np.testing.assert_allclose(many[i], single, atol=1e-5)


def test_eight_devices_draw_what_one_draws():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    there = make(KEY, jax.device_put(batch(), spread))
    for one, eight in zip(jax.tree.leaves(make(KEY, batch())), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(one, eight, atol=1e-6)


def test_label_flips_with_its_image():
    made = make(KEY, batch())
    np.testing.assert_allclose(levels(made.x)[..., 0], made.y, atol=0.01)
    source = batch().labelled.label
    flipped = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(made.y, source, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(made.y, source, strict=True)])
    assert (flipped ^ same).all()
    assert 1 < flipped.sum() < 15


def test_padding_flips_with_its_image():
    data = batch()
    made = make(KEY, data).streams["unlabelled"]
    crops = data.streams["unlabelled"]
    source = np.asarray(crops.image, np.float64)
    for i, (rows, columns) in enumerate(np.asarray(crops.size)):
        ignore = np.ones((12, 12), bool)
        ignore[:rows, :columns] = False
        if np.allclose(levels(made.w[i]), source[i], atol=0.01):
            expected = ignore
        else:
            np.testing.assert_allclose(levels(made.w[i]), source[i][:, ::-1], atol=0.01)
            expected = ignore[:, ::-1]
        np.testing.assert_array_equal(made.ignore[i], expected)


def test_without_flip_nothing_moves():
    data = batch()
    made = make(KEY, data, flip=False)
    np.testing.assert_array_equal(made.y, data.labelled.label)
    np.testing.assert_allclose(
        levels(made.streams["unlabelled"].w), data.streams["unlabelled"].image, atol=0.01
    )


def test_without_partner_everything_else_stays():
    """Keys go by name: leaving a stream out does not shift what the others draw."""
    both, alone = make(KEY, batch()), make(KEY, batch(partner=False))
    assert list(alone.streams) == ["unlabelled"]
    assert_equal(both.replace(streams={"unlabelled": both.streams["unlabelled"]}), alone)


def test_labelled_only():
    made = make(KEY, batch().replace(streams={}))
    assert made.streams == made.boxes == {}
    np.testing.assert_array_equal(made.x, make(KEY, batch()).x)


def test_streams_views_and_boxes_are_independent():
    data = batch()
    made = make(KEY, data.replace(streams=dict.fromkeys(data.streams, data.streams["unlabelled"])))
    assert not np.array_equal(made.streams["unlabelled"].w, made.streams["unlabelled.1"].w)
    assert not np.array_equal(made.streams["unlabelled"].s1, made.streams["unlabelled"].s2)
    assert not np.array_equal(made.boxes["s1"], made.boxes["s2"])


def test_share_of_untouched_strong_views():
    """No jitter, no grey, no blur: 0.2 · 0.8 · 0.5 of the views; grey with any jitter: 0.2."""
    count = 2000
    images = floats(count, 4)
    strong = np.asarray(jax.jit(views.strong_view)(KEY, images))
    untouched = (strong == np.asarray(images)).all(axis=(1, 2, 3)).mean()
    grey = (strong.max(axis=-1) == strong.min(axis=-1)).all(axis=(1, 2)).mean()
    for share, expected in ((untouched, 0.2 * 0.8 * 0.5), (grey, 0.2)):
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / count)


def test_purposes_have_different_keys():
    names = ("labelled", "unlabelled", "unlabelled.1", "box1", "box2", "s1", "s2", "flip", "jitter")
    names += ("choices",)
    assert len({zlib.crc32(name.encode()) for name in names}) == len(names)


def test_stored_labels_of_a_stream_move_with_its_image():
    data = batch()
    crops = data.streams["unlabelled"]
    data.streams["unlabelled"] = crops.replace(label=crops.image[..., 0])
    made = make(KEY, data).streams["unlabelled"]
    assert made.label.dtype == jnp.int32
    np.testing.assert_allclose(levels(made.w)[..., 0], made.label, atol=0.01)
