"""ZegCLIP: prompted CLIP and the mask decoder, against the published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.atm import MaskDecoder
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.models.vit import PROMPTED_CLIP, VisionTransformer
from semivl_jax.types import ClassText, Features
from semivl_jax.weights.tree import check
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.golden_models import class_text
from tests.models.initialisation import assert_initialised_as_published, random_variables
from tests.weights import converted

TOLERANCE = 1e-5
FILES = files("zegclip*")


def golden_tower(golden, **overrides):
    kwargs = {**golden.meta["backbone_kwargs"], **overrides}
    depth, width, patch = kwargs["layers"], kwargs["width"], kwargs["patch_size"]
    indices = kwargs["out_indices"]
    side = np.broadcast_to(kwargs["input_resolution"], 2)
    return VisionTransformer(
        **PROMPTED_CLIP
        | {"prompts": kwargs["num_tokens"], "prompt_depth": kwargs["total_d_layer"]},
        patch_size=patch,
        width=width,
        depth=depth,
        num_heads=kwargs["heads"],
        mlp_dim=golden["w/backbone.transformer.resblocks.0.mlp.c_fc.bias"].size,
        out_dim=kwargs["output_dim"],
        grid=(int(side[0]) // patch, int(side[1]) // patch),
        # A single level means the dense embedding, whatever its number.
        out_indices=(depth,) if len(indices) == 1 else tuple(sorted(indices)),
    )


def golden_model(golden):
    """(model, its converted parameters)."""
    kwargs = golden.meta["head_kwargs"]
    assert kwargs["use_stages"] == 1 and not kwargs["use_proj"]
    decoder = MaskDecoder(num_layers=kwargs["num_layers"], num_heads=kwargs["num_heads"])
    model = SegmentationModel(golden_tower(golden), decoder, crop=kwargs["img_size"])
    heads = {"image_heads": model.backbone.num_heads, "decoder_heads": decoder.num_heads}
    return model, converted.segmenter(golden.weights(), **heads).tree["params"]


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_features_queries_and_masks_as_published(file):
    golden = Golden(file)
    (model, params), text = golden_model(golden), class_text(golden["in/text"])
    image = jax.ShapeDtypeStruct((1, model.crop, model.crop, 3), jnp.float32)
    check(params, jax.eval_shape(model.init, jax.random.key(0), image, text)["params"], source=file)

    @jax.jit
    def run(image):
        variables = {"params": params}
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
@pytest.mark.parametrize("file", FILES)
def test_other_depths_of_prompts_and_levels_as_published(file):
    golden = Golden(file)
    params = golden_model(golden)[1]["backbone"]
    for name in [name for name in golden.meta if name.startswith("variant_")]:
        meta = golden.meta[name]
        tower = golden_tower(golden, **meta["overrides"])
        deep = params["prompt"]["deep_embedding"][: tower.prompt_depth]
        cut = {**params, "prompt": {**params["prompt"], "deep_embedding": deep}}
        image = nhwc(golden[meta.get("input") or next(iter(golden.keys("in/")))])
        features = jax.jit(tower.apply)({"params": cut}, image)
        assert len(features.maps) == len(golden.keys(f"out/{name}/feat"))
        for i, ours in enumerate(features.maps):
            assert_close(ours, nhwc(golden[f"out/{name}/feat{i}"]), TOLERANCE, f"{name} {i}")
        assert_close(features.pooled, golden[f"out/{name}/global"], TOLERANCE, f"{name} global")


@pytest.mark.golden
def test_a_decoder_is_initialised_as_published():
    features = Features(maps=(jnp.zeros((1, 2, 2, 512)),), pooled=jnp.zeros((1, 512)))
    text = class_text(np.zeros((3, 512), np.float32))
    assert_initialised_as_published(
        MaskDecoder(), features, text, part="decode_head.", having="q_proj.weight"
    )


def test_classes_of_several_concepts_take_their_best_mask():
    rng = np.random.default_rng(0)
    features = Features(
        maps=(jnp.asarray(rng.normal(size=(2, 2, 3, 8)), jnp.float32),),
        pooled=jnp.asarray(rng.normal(size=(2, 8)), jnp.float32),
    )
    rows = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    decoder = MaskDecoder(num_layers=1, num_heads=2)
    each = ClassText(rows, jnp.arange(3), 3)
    variables = random_variables(decoder, features, each)
    decode = jax.jit(decoder.apply)
    single = decode(variables, features, each)
    joined = decode(variables, features, ClassText(rows, jnp.array([1, 0, 1]), 2))
    np.testing.assert_allclose(joined[..., 0], single[..., 1], atol=1e-6)
    best = jnp.maximum(single[..., 0], single[..., 2])
    np.testing.assert_allclose(joined[..., 1], best, atol=1e-6)
