"""The vision transformer and its variants: published numbers, other libraries, and further properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import vit
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.weights.tree import check
from tests import golden_models
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.models import hugging_face
from tests.models.initialisation import random_variables
from tests.weights import converted

TOLERANCE = 1e-5
SIZES = {"patch_size": 4, "width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}
KINDS = {
    "clip": {**vit.CLIP, "out_dim": 8, "out_indices": (0, 2, 3)},
    "prompted": {**vit.PROMPTED_CLIP, "out_dim": 8, "prompts": 2, "prompt_depth": 1},
    "imagenet": vit.IMAGENET,
    "dinov2": vit.DINOV2,
    "dinov3": vit.DINOV3,
    "augreg": vit.AUGREG,
    "siglip": vit.SIGLIP,
}


def small(kind="clip", **changes):
    options = {**SIZES, "out_indices": (0, 2), **KINDS[kind], "grid": (2, 3), **changes}
    return VisionTransformer(**options)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_maps(features, golden, prefix):
    """All maps that a file holds under `prefix`, and no others."""
    assert len(features.maps) == len(golden.keys(f"{prefix}/feat"))
    for i, ours in enumerate(features.maps):
        assert_close(ours, nhwc(golden[f"{prefix}/feat{i}"]), TOLERANCE, f"{prefix}/feat{i}")


@pytest.mark.golden
@pytest.mark.parametrize("file", files("clip_vit_*"))
def test_clips_dense_tower_is_the_published_one(file):
    golden = Golden(file)
    kwargs, weights = golden.meta["kwargs"], golden.weights()
    tower = golden_models.vision_tower(
        kwargs, table_of=kwargs["img_size"], out_dim=weights["proj.weight"].shape[0]
    )
    clip = converted.image_tower(weights, num_heads=tower.num_heads, grid=tower.grid)
    assert clip.image == {key: getattr(tower, key) for key in clip.image}
    params = clip.image_params
    image = jax.ShapeDtypeStruct((1, *kwargs["img_size"], 3), jnp.float32)
    check(params, jax.eval_shape(tower.init, jax.random.key(0), image)["params"], source=file)
    encode = jax.jit(lambda image: tower.apply({"params": params}, image))
    assert golden.meta["inputs"]
    for name in golden.meta["inputs"]:
        features = encode(nhwc(golden[f"in/{name}"]))
        assert_maps(features, golden, f"out/{name}")
        assert_close(features.pooled, golden[f"out/{name}/global"], TOLERANCE, f"{name} global")


@pytest.mark.golden
@pytest.mark.parametrize("file", files("timm_vit*"))
def test_the_imagenet_tower_is_the_published_one(file):
    golden = Golden(file)
    kwargs, wrapper = golden.meta["vit_kwargs"], golden.meta["wrapper_kwargs"]
    assert golden.meta["qkv_bias"]
    side = np.ravel(wrapper["img_size"])  # a number, or rows and columns
    tower = VisionTransformer(
        **{**vit.IMAGENET, "drop_path": wrapper["drop_path_rate"]},
        grid=(int(side[0]) // kwargs["patch_size"], int(side[-1]) // kwargs["patch_size"]),
        patch_size=kwargs["patch_size"],
        width=kwargs["embed_dim"],
        depth=kwargs["depth"],
        num_heads=kwargs["num_heads"],
        mlp_dim=int(kwargs["mlp_ratio"] * kwargs["embed_dim"]),
        out_indices=tuple(sorted(wrapper["out_indices"])),
        eps=golden.meta["norm_eps"],
    )
    weights = converted.encoder(golden.weights("m."), image_heads=tower.num_heads, grid=tower.grid)
    assert tuple(weights.sizes.pop("grid")) == tower.grid
    assert weights.sizes == {name: getattr(tower, name) for name in weights.sizes}
    encode = jax.jit(lambda image: tower.apply({"params": weights.tree["params"]}, image))
    assert golden.meta["inputs"]
    for name in golden.meta["inputs"]:
        features = encode(nhwc(golden[f"in/{name}/img"]))
        assert_maps(features, golden, f"out/{name}")
        assert_close(features.pooled, golden[f"out/{name}/cls"], TOLERANCE, f"{name} cls")


@pytest.mark.parametrize("kind", ["imagenet", "dinov2"])
def test_numbers_are_those_of_transformers(kind):
    torch, transformers = hugging_face.libraries()
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"image_size": 12, "patch_size": 4, "layer_norm_eps": 1e-6}
    if kind == "imagenet":
        config = transformers.ViTConfig(**sizes, intermediate_size=64)
        theirs = transformers.ViTModel(config, add_pooling_layer=False)
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    hugging_face.randomize(theirs, torch)
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2)), output_hidden_states=True)
        first = theirs.layernorm(out.hidden_states[1]).numpy()
    last = out.last_hidden_state.numpy()
    tower = small(kind, mlp_dim=64, grid=(3, 3))
    weights = converted.encoder(hugging_face.timm_state(theirs), image_heads=2)
    assert weights.sizes["grid"] == [3, 3]
    features = jax.jit(tower.apply)({"params": weights.tree["params"]}, image)
    for ours, expected in zip(features.maps, (first, last), strict=True):
        assert_close(ours, expected[:, 1:].reshape(ours.shape), TOLERANCE)
    assert_close(features.pooled, last[:, 0], TOLERANCE)


def test_images_for_dinov2_are_resized_to_whole_patches():
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).normal(size=(1, 14, 9, 3)).astype(np.float32)
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(0, 3, 1, 2)), (16, 8), mode="bilinear", align_corners=True
    )
    tower = small("dinov2", depth=1, out_indices=(0,))
    encode, variables = jax.jit(tower.apply), random_variables(tower, image)
    ours, expected = encode(variables, image), encode(variables, nhwc(whole.numpy()))
    assert ours.maps[0].shape == (1, 4, 2, 16)
    assert_close(ours.maps[0], expected.maps[0], TOLERANCE)


def test_zeros_that_the_host_adds_do_not_change_the_maps():
    """Exactly for towers with `padding_patch`."""
    image = normal(0, 1, 7, 9, 3)
    padded = jnp.pad(image, ((0, 0), (0, 1), (0, 3), (0, 0)))
    for kind in KINDS:
        tower = small(kind)
        variables, encode = random_variables(tower, image), jax.jit(tower.apply)
        there, here = encode(variables, image).maps[-1], encode(variables, padded).maps[-1]
        same = there.shape == here.shape and np.allclose(there, here, atol=1e-5)
        assert same == (tower.padding_patch is not None), kind


@pytest.mark.parametrize("kind", KINDS)
def test_remat_gives_the_same_numbers_and_bfloat16_close_ones(kind):
    image = normal(1, 2, 8, 12, 3)
    tower = small(kind)
    variables = random_variables(tower, image)
    expected = jax.jit(tower.apply)(variables, image)
    for remat in ("blocks", "dots"):
        ours = jax.jit(small(kind, remat=remat).apply)(variables, image)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)
    half = jax.jit(small(kind, dtype=jnp.bfloat16).apply)(variables, image)
    embedded = tower.out_dim is not None
    assert half.maps[0].dtype == jnp.bfloat16
    assert half.pooled.dtype == (jnp.float32 if embedded else jnp.bfloat16)
    if embedded and tower.out_indices[-1] == tower.depth:
        np.testing.assert_allclose(jnp.linalg.norm(expected.maps[-1], axis=-1), 1, rtol=1e-5)
    for ours, exact in zip(half.maps, expected.maps, strict=True):
        assert_close(np.asarray(ours, np.float32), exact, 0.05)


def test_query_and_key_of_the_last_block_get_no_gradient_from_the_dense_maps():
    image = normal(1, 1, 12, 12, 3)  # another grid than the table's
    tower = small(out_indices=(0, 3))
    params = random_variables(tower, image)["params"]

    def loss(params):
        maps = tower.apply({"params": params}, image).maps
        return sum((m * jnp.arange(m.shape[-1])[None, None, None, :]).sum() for m in maps)

    gradient = jax.jit(jax.grad(loss))(params)
    last = gradient["Transformer"]["encoderblock_2"]["MultiHeadDotProductAttention_0"]
    first = gradient["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    for name in ("query", "key"):
        assert not np.any(last[name]["kernel"])
        assert np.any(first[name]["kernel"])
    assert np.any(last["value"]["kernel"])
    assert np.all(np.any(gradient["pos_embedding"], axis=-1)[0, 1:])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("imagenet", {"drop_path": 0.5, "depth": 2}), ("prompted", {"prompt_dropout": 0.5})],
)
def test_dropout_acts_only_in_training_with_a_key(kind, changes):
    image = normal(1, 64, 8, 8, 3)
    tower, saving = (
        small(kind, grid=(2, 2), out_indices=(0, 1), remat=remat, **changes)
        for remat in ("none", "blocks")
    )
    variables = random_variables(tower, image)
    key = {"dropout": jax.random.key(2)}

    @jax.jit
    def run(variables):
        evaluation = tower.apply(variables, image, rngs=key).maps
        trained = tower.apply(variables, image, train=True).maps
        dropped = [t.apply(variables, image, train=True, rngs=key).maps for t in (tower, saving)]
        return evaluation, trained, *dropped

    evaluation, trained, dropped, again = run(variables)
    jax.tree.map(np.testing.assert_array_equal, evaluation, trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dropped, again)
    changed = jnp.any(jnp.abs(dropped[1] - trained[1]) > 1e-3, axis=(1, 2, 3))
    assert int(changed.sum()) == 64  # images that are not skipped are doubled
    if kind == "imagenet":
        np.testing.assert_array_equal(dropped[0], trained[0])  # the first block is never skipped
        # A quarter of the images skips both halves of the last block: the map is that of the block before.
        skipped = jnp.all(jnp.abs(dropped[1] - dropped[0]) < 1e-6, axis=(1, 2, 3))
        assert 5 <= int(skipped.sum()) <= 29  # 16 ± 3.8 standard deviations


@pytest.mark.parametrize("kind", ["clip", "augreg"])  # with and without a row for the class token
def test_a_stored_table_is_resized_to_the_towers_grid(kind):
    tower = small(kind)
    square = np.random.default_rng(0).normal(size=(1, tower.class_rows + 16, 16))
    resized = tower.resized_table(square.astype(np.float32), source="a.npz")
    assert resized.shape == (1, tower.class_rows + 6, 16)
    np.testing.assert_array_equal(
        resized[:, : tower.class_rows], square[:, : tower.class_rows].astype(np.float32)
    )
    same = tower.resized_table(resized, source="a.npz")  # its own grid is not square
    np.testing.assert_array_equal(same, resized)
    with pytest.raises(ValueError, match=r"a\.npz: a position table of \d rows is not"):
        tower.resized_table(resized[:, :-1], source="a.npz")


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("clip", {"out_indices": (0, 4)}, r"= \(0, 4\): choose .* 0 to 3 \(the dense embedding\)"),
        ("clip", {"out_indices": ()}, r"out_indices = \(\): choose one or more"),
        (
            "imagenet",
            {"out_indices": (2, 0)},
            r"\(2, 0\).* 0 to 2 \(the last block\), in ascending",
        ),
        ("clip", {"num_heads": 3}, "num_heads=3 does not divide 16 channels"),
        ("augreg", {"class_token": False}, "nothing to pool with"),
        ("prompted", {"prompt_depth": 3}, "prompt_depth=3 of a tower with 3 blocks: choose 1 to 2"),
        ("prompted", {"patch_size": 9}, "has no whole patch of 9 pixels"),
    ],
)
def test_a_tower_that_cannot_be_built_is_an_error(kind, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(small(kind, **changes).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
