"""The dense image tower: the published numbers, and what they leave open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semivl_jax.weights.semivl import import_backbone

from semivl_jax.models.vit import VisionTransformer
from semivl_jax.weights import towers
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.weights import converted

FILES = files("clip_vit_*")


def build(kwargs: dict, out_dim: int) -> VisionTransformer:
    """Our tower with the reference's constructor arguments."""
    depth, patch, width = kwargs["num_layers"], kwargs["patch_size"], kwargs["embed_dims"]
    indices = kwargs["out_indices"]
    return VisionTransformer(
        patch_size=patch,
        width=width,
        depth=depth,
        num_heads=kwargs["num_heads"],
        mlp_dim=kwargs["mlp_ratio"] * width,
        out_dim=out_dim,
        grid=tuple(side // patch for side in kwargs["img_size"]),
        out_indices=(depth,) if indices is None else tuple(sorted(indices)),
        eps=kwargs["norm_cfg"]["eps"],
    )


def small(**changes) -> VisionTransformer:
    options = dict(patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, out_dim=8)  # noqa: C408
    return VisionTransformer(**{**options, "grid": (2, 3), "out_indices": (0, 2), **changes})


def drawn(module, example):
    """Random parameters without compiling the initialisers, which takes longer than all the rest."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_maps_and_pooled_embedding_are_the_published_ones(file):
    golden = Golden(file)
    weights = golden.weights()
    tower = build(golden.meta["kwargs"], out_dim=weights["proj.weight"].shape[0])
    clip = converted.image_tower(weights, num_heads=tower.num_heads)
    assert clip.image == {key: getattr(tower, key) for key in clip.image}
    params = towers.resized(clip.image_params, tower.grid)
    converted.assert_equal_trees(params, import_backbone(weights, num_heads=tower.num_heads))
    encode = jax.jit(lambda image: tower.apply({"params": params}, image))
    assert golden.meta["inputs"]
    for name, shapes in golden.meta["inputs"].items():
        features = encode(nhwc(golden[f"in/{name}"]))
        assert len(features.maps) == len(shapes["feat_shapes"])
        for i, ours in enumerate(features.maps):
            assert_close(ours, nhwc(golden[f"out/{name}/feat{i}"]), 1e-5, f"{name} feat{i}")
        assert_close(features.pooled, golden[f"out/{name}/global"], 1e-5, f"{name} global")


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_published_weights_fill_the_tower_exactly(file):
    golden = Golden(file)
    weights = golden.weights()
    tower = build(golden.meta["kwargs"], out_dim=weights["proj.weight"].shape[0])
    image = jnp.zeros((1, *golden.meta["kwargs"]["img_size"], 3))
    shapes = jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
    params = import_backbone(weights, num_heads=tower.num_heads)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_unknown_names_are_listed_and_a_part_converts_alone():
    names = {"ln0.weight": np.ones(4, np.float32)}
    assert list(import_backbone(names, num_heads=1)) == ["pre_norm"]
    with pytest.raises(ValueError, match=r"file\.pth has tensors of unknown name: ln7\.weight"):
        import_backbone({"ln7.weight": np.ones(4)}, num_heads=1, source="file.pth")


def test_the_position_table_is_resized_at_load():
    table = np.random.default_rng(0).normal(size=(1, 17, 4)).astype(np.float32)
    params = import_backbone({"pos_embed": table}, num_heads=1, grid=(2, 5))
    assert params["pos_embedding"].shape == (1, 11, 4)
    np.testing.assert_array_equal(params["pos_embedding"][:, 0], table[:, 0])


def test_remat_and_eager_give_the_same_numbers():
    image = jax.random.normal(jax.random.key(1), (2, 7, 9, 3))
    tower = small()
    variables = drawn(tower, image)
    expected = jax.jit(tower.apply)(variables, image)
    saving = [jax.jit(small(remat=remat).apply) for remat in ("blocks", "dots")]
    for other in (tower.apply, *saving):
        ours = other(variables, image)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert expected.maps[0].shape == (2, 2, 3, 16)
    np.testing.assert_allclose(jnp.linalg.norm(expected.maps[1], axis=-1), 1, rtol=1e-5)


def test_bfloat16_is_close_and_its_embedding_float32():
    image = jax.random.normal(jax.random.key(1), (1, 8, 12, 3))
    variables = drawn(small(), image)
    exact = jax.jit(small().apply)(variables, image)
    half = jax.jit(small(dtype=jnp.bfloat16).apply)(variables, image)
    assert half.maps[0].dtype == jnp.bfloat16
    assert half.maps[1].dtype == half.pooled.dtype == jnp.float32
    np.testing.assert_allclose(half.maps[1], exact.maps[1], atol=0.05)


def test_query_and_key_of_the_last_block_get_no_gradient_from_the_maps():
    image = jax.random.normal(jax.random.key(1), (1, 12, 12, 3))  # another grid than the table's
    tower = small()
    params = drawn(tower, image)["params"]

    def loss(params):
        maps = tower.apply({"params": params}, image).maps
        return sum((m * jnp.arange(m.shape[-1])[None, None, None, :]).sum() for m in maps)

    gradient = jax.jit(jax.grad(loss))(params)
    last = gradient["Transformer"]["encoderblock_1"]["MultiHeadDotProductAttention_0"]
    first = gradient["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    for name in ("query", "key"):
        assert not np.any(last[name]["kernel"])
        assert np.any(first[name]["kernel"])
    assert np.any(last["value"]["kernel"])
    assert np.all(np.any(gradient["pos_embedding"], axis=-1)[0, 1:])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"out_indices": (0, 3)}, r"out_indices=\(0, 3\): name one or more of 0 … depth=2"),
        ({"out_indices": ()}, r"out_indices=\(\): name one or more"),
        ({"out_indices": (2, 0)}, r"out_indices=\(2, 0\) must ascend"),
        ({"num_heads": 3}, "num_heads=3 does not divide width=16"),
    ],
)
def test_a_tower_that_cannot_be_built_says_why(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(small(**changes).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
