"""The ImageNet ViT: published numbers, another library, and when blocks are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semivl_jax.models.imagenet_vit import ImageNetViT
from semivl_jax.weights.timm_vit import import_timm_vit

from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.weights.tree import check
from tests.golden_files import Golden, assert_close, nhwc
from tests.models import hugging_face
from tests.models.drawn import drawn
from tests.weights import converted

TOLERANCE = 1e-5


def golden_tower(golden):
    kwargs, wrapper = golden.meta["vit_kwargs"], golden.meta["wrapper_kwargs"]
    assert golden.meta["qkv_bias"]
    return ImageNetViT(
        grid=(wrapper["img_size"] // kwargs["patch_size"],) * 2,
        patch_size=kwargs["patch_size"],
        width=kwargs["embed_dim"],
        depth=kwargs["depth"],
        num_heads=kwargs["num_heads"],
        mlp_dim=int(kwargs["mlp_ratio"] * kwargs["embed_dim"]),
        out_indices=tuple(sorted(wrapper["out_indices"])),
        stochastic_depth=wrapper["drop_path_rate"],
        eps=golden.meta["norm_eps"],
    )


@pytest.mark.golden
def test_maps_and_class_token_as_published():
    golden = Golden("timm_vit")
    tower = golden_tower(golden)
    weights = converted.encoder(golden.weights("m."), image_heads=tower.num_heads)
    assert tuple(weights.sizes.pop("grid")) == tower.grid
    assert weights.sizes == {name: getattr(tower, name) for name in weights.sizes}
    params = weights.tree["params"]
    known = import_timm_vit(golden.weights(), num_heads=tower.num_heads)
    converted.assert_equal_trees(params, known)
    image = jnp.zeros((1, *(side * tower.patch_size for side in tower.grid), 3))
    shapes = jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
    check(params, shapes, source="timm_vit.npz")
    encode = jax.jit(tower.apply)
    assert golden.meta["inputs"]
    for name in golden.meta["inputs"]:
        features = encode({"params": params}, nhwc(golden[f"in/{name}/img"]))
        assert len(features.maps) == len(tower.out_indices)
        for i, ours in enumerate(features.maps):
            assert_close(ours, nhwc(golden[f"out/{name}/feat{i}"]), TOLERANCE, f"{name} feat{i}")
        assert_close(features.pooled, golden[f"out/{name}/cls"], TOLERANCE, f"{name} cls")


def test_published_sizes():
    """Number of parameters of the full-size model; the published one also has ImageNet's classifier."""
    model = SegmentationModel(ImageNetViT(grid=(32, 32)), DeepLabHead(21), crop=512)
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, None)["params"]
    total = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name])) for name in shapes}
    classifier = 1000 * 768 + 1000
    assert total["backbone"] + classifier == 87_203_560
    assert sum(total.values()) + classifier == 90_353_885


def small(**changes):
    options = {"patch_size": 4, "width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}
    return ImageNetViT(**{**options, "grid": (2, 2), "out_indices": (0, 2), **changes})


def test_numbers_are_those_of_another_library():
    """transformers has the same network; its random weights go through timm's names."""
    torch, transformers = hugging_face.libraries()
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=(8, 12),
        patch_size=4,
        layer_norm_eps=1e-6,
    )
    theirs = transformers.ViTModel(config, add_pooling_layer=False)
    hugging_face.randomize(theirs, torch)
    image = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2)), output_hidden_states=True)
        first = theirs.layernorm(out.hidden_states[1])
    last = out.last_hidden_state.numpy()
    tower = small(grid=(2, 3))
    params = import_timm_vit(hugging_face.timm_state(theirs), num_heads=2)
    features = jax.jit(tower.apply)({"params": params}, image)
    for ours, expected in zip(features.maps, (first.numpy(), last), strict=True):
        assert_close(ours, expected[:, 1:].reshape(ours.shape), TOLERANCE)
    assert_close(features.pooled, last[:, 0], TOLERANCE)


def test_stochastic_depth_acts_only_in_training_with_a_key():
    image = jax.random.normal(jax.random.key(1), (64, 8, 8, 3))
    tower, saving = (
        small(depth=2, out_indices=(0, 1), stochastic_depth=0.5, remat=remat)
        for remat in ("none", "blocks")
    )
    variables = drawn(tower, image)
    key = {"dropout": jax.random.key(2)}

    @jax.jit
    def run(variables):
        evaluation = tower.apply(variables, image, rngs=key).maps
        trained = tower.apply(variables, image, train=True).maps
        dropped = [t.apply(variables, image, train=True, rngs=key).maps for t in (tower, saving)]
        return evaluation, trained, *dropped

    evaluation, trained, dropped, dropped_again = run(variables)
    for ours, again in zip(dropped, dropped_again, strict=True):
        np.testing.assert_allclose(ours, again, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, evaluation, trained)
    np.testing.assert_array_equal(dropped[0], trained[0])  # the first block is never skipped
    # An image skips both halves of the last block in a quarter of the cases: its map is the tap before.
    skipped = jnp.all(jnp.abs(dropped[1] - dropped[0]) < 1e-6, axis=(1, 2, 3))
    assert 5 <= int(skipped.sum()) <= 29  # 16 ± 3.8 standard deviations
    changed = jnp.any(jnp.abs(dropped[1] - trained[1]) > 1e-3, axis=(1, 2, 3))
    assert int(changed.sum()) == 64  # whoever is not skipped is doubled


def test_bfloat16_keeps_parameters_in_float32():
    tower = small(dtype=jnp.bfloat16)
    features, variables = jax.eval_shape(
        lambda: tower.init_with_output(jax.random.key(0), jnp.zeros((1, 9, 7, 3)))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert features.maps[0].shape == (1, 2, 2, 16)


def test_a_position_table_is_resized_at_load_and_unknown_names_are_listed():
    table = np.random.default_rng(0).normal(size=(1, 17, 4)).astype(np.float32)
    params = import_timm_vit({"pos_embed": table}, num_heads=1, grid=(2, 3))
    assert params["pos_embedding"].shape == (1, 7, 4)
    with pytest.raises(ValueError, match=r"a\.pth has tensors of unknown name: fc_norm\.weight"):
        import_timm_vit({"fc_norm.weight": np.ones(1)}, num_heads=1, source="a.pth")


def test_taps_that_are_no_blocks_are_an_error():
    with pytest.raises(ValueError, match="name one or more of 0 … the last block=2"):
        jax.eval_shape(small(out_indices=(3,)).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
