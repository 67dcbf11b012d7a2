"""Prompted CLIP and the mask decoder: published numbers, and what they leave open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semivl_jax.models.zegclip import MaskDecoder, PromptedVisionTransformer
from semivl_jax.weights.zegclip import import_zegclip

from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.types import ClassText, Features
from semivl_jax.weights.tree import check, flatten
from tests.golden_files import Golden, assert_close, nhwc
from tests.golden_models import class_text
from tests.models.drawn import assert_same_distributions, drawn, fresh_statistics, numbered
from tests.weights import converted

TOLERANCE = 1e-5


def golden_tower(golden, **overrides):
    kwargs = {**golden.meta["backbone_kwargs"], **overrides}
    depth, width, patch = kwargs["layers"], kwargs["width"], kwargs["patch_size"]
    indices = kwargs["out_indices"]
    return PromptedVisionTransformer(
        patch_size=patch,
        width=width,
        depth=depth,
        num_heads=kwargs["heads"],
        mlp_dim=golden["w/backbone.transformer.resblocks.0.mlp.c_fc.bias"].size,
        out_dim=kwargs["output_dim"],
        grid=(kwargs["input_resolution"] // patch,) * 2,
        # A single level means the dense embedding, whatever its number.
        out_indices=(depth,) if len(indices) == 1 else tuple(sorted(indices)),
        prompts=kwargs["num_tokens"],
        prompt_depth=kwargs["total_d_layer"],
    )


def golden_params(golden):
    heads = golden.meta["backbone_kwargs"]["heads"], golden.meta["head_kwargs"]["num_heads"]
    known = import_zegclip(golden.weights(), backbone_heads=heads[0], decoder_heads=heads[1])
    weights = converted.segmenter(golden.weights(), image_heads=heads[0], decoder_heads=heads[1])
    converted.assert_equal_trees(weights.tree["params"], known["params"])
    return known


def golden_segmenter(golden):
    kwargs = golden.meta["head_kwargs"]
    assert kwargs["use_stages"] == 1 and not kwargs["use_proj"]
    decoder = MaskDecoder(num_layers=kwargs["num_layers"], num_heads=kwargs["num_heads"])
    return SegmentationModel(golden_tower(golden), decoder, crop=kwargs["img_size"])


@pytest.fixture(scope="module")
def golden():
    return Golden("zegclip")


@pytest.mark.golden
def test_features_queries_and_masks_as_published(golden):
    model, variables = golden_segmenter(golden), golden_params(golden)
    text = class_text(golden["in/text"])

    @jax.jit
    def run(image):
        features = model.apply(variables, image, method="encode")
        masks, state = model.apply(
            variables,
            features,
            text,
            method="decode",
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        return features, masks, state["intermediates"]["decoder"]

    assert golden.meta["inputs"]
    for name in golden.meta["inputs"]:
        features, masks, inside = run(nhwc(golden[f"in/{name}/img"]))
        assert_close(features.maps[0], nhwc(golden[f"out/{name}/feat0"]), TOLERANCE, name)
        assert_close(features.pooled, golden[f"out/{name}/global"], TOLERANCE, f"{name} global")
        for i in range(model.decoder.num_layers):
            query, mask = inside[f"layer_{i}"]["__call__"][0]
            expected = golden[f"out/{name}/layer{i}_query"].transpose(1, 0, 2)
            assert_close(query, expected, TOLERANCE, f"{name} query {i}")
            expected = golden[f"out/{name}/layer{i}_mask_tokens"]
            assert_close(mask, expected, TOLERANCE, f"{name} masks {i}")
        assert_close(masks, nhwc(golden[f"out/{name}/pred_masks"]), TOLERANCE, f"{name} logits")


@pytest.mark.golden
def test_other_depths_of_prompts_and_levels_as_published(golden):
    variants = [name for name in golden.meta if name.startswith("variant_")]
    assert variants
    for name in variants:
        meta = golden.meta[name]
        tower = golden_tower(golden, **meta["overrides"])
        params = golden_params(golden)["params"]["backbone"]
        deep = params["prompt"]["deep_embedding"][: tower.prompt_depth]
        params = {**params, "prompt": {**params["prompt"], "deep_embedding": deep}}
        features = jax.jit(tower.apply)({"params": params}, nhwc(golden[meta["input"]]))
        for i, ours in enumerate(features.maps):
            assert_close(ours, nhwc(golden[f"out/{name}/feat{i}"]), TOLERANCE, f"{name} {i}")
        assert_close(features.pooled, golden[f"out/{name}/global"], TOLERANCE, f"{name} global")


@pytest.mark.golden
def test_published_names_cover_the_model(golden):
    model = golden_segmenter(golden)
    image = jnp.zeros((1, model.crop, model.crop, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, class_text(golden["in/text"]))
    check(golden_params(golden), shapes, source="zegclip.npz")


@pytest.mark.golden
def test_a_fresh_decoder_is_drawn_as_published():
    shapes, stats = fresh_statistics("decode_head.", having="q_proj.weight")
    rows = {f"decode_head.{name}": array for name, array in numbered(shapes).items()}
    rows = import_zegclip(rows, backbone_heads=1, decoder_heads=8)["params"]["decoder"]
    features = Features(maps=(jnp.zeros((1, 2, 2, 64)),), pooled=jnp.zeros((1, 64)))
    key = jax.random.key(0, impl="rbg")  # compiles faster than the default
    text = class_text(np.zeros((3, 64), np.float32))
    params = jax.jit(MaskDecoder().init)(key, features, text)["params"]
    assert_same_distributions(params, stats, rows)


def published():
    tower = PromptedVisionTransformer(
        patch_size=16,
        width=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        out_dim=512,
        grid=(32, 32),
        out_indices=(12,),
    )
    return SegmentationModel(tower, MaskDecoder(), crop=512)


def test_published_sizes():
    """All parameters, and the trained ones, of the full-size model.

    The published decoder also counts, per layer, a self-attention and a norm that it never calls.
    """
    model, text = published(), class_text(np.zeros((21, 512), np.float32))
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    shapes = flatten(jax.eval_shape(model.init, jax.random.key(0), image, text)["params"])
    sizes = {path: leaf.size for path, leaf in shapes.items()}
    unused = 3 * (4 * (512 * 512 + 512) + 2 * 512)
    assert sum(sizes.values()) + unused == 100_649_728
    trained = ("backbone/prompt/", "decoder/")
    assert sum(s for p, s in sizes.items() if p.startswith(trained)) + unused == 13_821_184


def small(**changes):
    options = dict(patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, out_dim=8)  # noqa: C408
    more = {
        "grid": (2, 3),
        "out_indices": (2,),
        "prompts": 2,
        "prompt_depth": 1,
        "prompt_dropout": 0.5,
    }
    return PromptedVisionTransformer(**{**options, **more, **changes})


def test_prompt_dropout_acts_only_in_training_with_a_key():
    image = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    tower, saving = small(), small(remat="blocks")
    variables = drawn(tower, image)
    key = {"dropout": jax.random.key(2)}

    @jax.jit
    def run(variables):
        evaluation = tower.apply(variables, image, rngs=key)
        trained = tower.apply(variables, image, train=True)
        dropped = tower.apply(variables, image, train=True, rngs=key)
        again = saving.apply(variables, image, train=True, rngs=key)
        return [features.maps[0] for features in (evaluation, trained, dropped, again)]

    evaluation, trained, dropped, again = run(variables)
    np.testing.assert_allclose(dropped, again, atol=1e-5)
    np.testing.assert_array_equal(evaluation, trained)
    assert float(jnp.abs(dropped - trained).max()) > 1e-3


def test_classes_of_several_concepts_take_their_best_mask():
    rng = np.random.default_rng(0)
    features = Features(
        maps=(jnp.asarray(rng.normal(size=(2, 2, 3, 8)), jnp.float32),),
        pooled=jnp.asarray(rng.normal(size=(2, 8)), jnp.float32),
    )
    rows = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    decoder = MaskDecoder(num_layers=1, num_heads=2)
    each = ClassText(rows, jnp.arange(3), 3)
    variables = drawn(decoder, features, each)
    decode = jax.jit(decoder.apply)
    single = decode(variables, features, each)
    joined = decode(variables, features, ClassText(rows, jnp.array([1, 0, 1]), 2))
    np.testing.assert_allclose(joined[..., 0], single[..., 1], atol=1e-6)
    np.testing.assert_allclose(
        joined[..., 1], jnp.maximum(single[..., 0], single[..., 2]), atol=1e-6
    )


def test_bfloat16_gives_float32_masks():
    image = jnp.zeros((1, 8, 12, 3))
    model = SegmentationModel(
        small(dtype=jnp.bfloat16), MaskDecoder(num_heads=2, dtype=jnp.bfloat16), crop=8
    )
    text = class_text(np.zeros((3, 8), np.float32))
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, text)
    )
    assert logits.dtype == jnp.float32 and logits.shape == (1, 8, 12, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt_depth": 2}, "choose at least one prompt, and 1 to 1 blocks after the first"),
        ({"out_indices": (3,)}, r"name one or more of 0 … depth=2"),
        ({"patch_size": 9}, "has no whole patch of 9 pixels"),
    ],
)
def test_a_tower_that_cannot_be_built_says_why(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(small(**changes).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_a_decoder_without_what_it_needs_says_why():
    text = class_text(np.zeros((3, 8), np.float32))
    maps = (jnp.zeros((1, 2, 2, 8)),)
    for features, sentence in (
        (Features(maps=maps), "needs the embedding of the whole image"),
        (Features(maps=maps, pooled=jnp.zeros((1, 6))), "from one vision-language model"),
    ):
        with pytest.raises(ValueError, match=sentence):
            MaskDecoder(num_heads=2).init(jax.random.key(0), features, text)


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match=r"a\.pth has tensors of unknown name: neck\.weight"):
        import_zegclip(
            {"neck.weight": np.ones(1)}, backbone_heads=1, decoder_heads=1, source="a.pth"
        )
