"""DINOv3: numbers of the published code and of transformers, names and sizes of the published models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from semivl_jax.models import build, rope, vit
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.weights import convert as convert_lib
from semivl_jax.weights import files
from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.layout import Options
from tests.golden_files import Golden, assert_close, nhwc
from tests.models import hugging_face
from tests.weights import converted

TOLERANCE = 1e-5
BACKBONES = {"vits16": "dinov3_vits16", "vits16plus": "dinov3_vits16plus",
             "vitb16": "dinov3_vitb16", "vitl16": "dinov3_vitl16"}  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("methods/co2s")


def tower_of(kwargs: dict, weights: files.Weights, **changes) -> VisionTransformer:
    """The published tower; it drops pixels that fill no patch."""
    options = {**vit.DINOV3, "fit": "crop", "out_indices": (kwargs["depth"] - 1,), **changes}
    sizes = {"width": kwargs["embed_dim"], "depth": kwargs["depth"],
             "num_heads": kwargs["num_heads"], "patch_size": kwargs["patch_size"],
             "registers": kwargs["n_storage_tokens"]}  # fmt: skip
    assert sizes.items() <= weights.sizes.items()
    assert weights.sizes["swiglu"] == (kwargs["ffn_layer"] == "swiglu")
    return VisionTransformer(**{**options, **weights.sizes})


@pytest.fixture(scope="module")
def dinov3(golden):
    """(weights, tower) of the case `dinov3`."""
    item = golden.meta["items"]["dinov3"]
    weights = converted.encoder(golden.weights("dinov3/"))
    return weights, tower_of(item["kwargs"], weights, out_indices=tuple(item["taps"]))


@pytest.mark.golden
def test_the_tower_is_the_published_one(golden, dinov3):
    weights, tower = dinov3
    item = golden.meta["items"]["dinov3"]
    encode = jax.jit(lambda image: tower.apply({"params": weights.tree["params"]}, image))
    assert item["inputs"]
    for name in item["inputs"]:
        features = encode(nhwc(golden[f"in/dinov3/{name}/img"]))
        for tap, ours in zip(item["taps"], features.maps, strict=True):
            assert_close(
                ours, nhwc(golden[f"out/dinov3/{name}/feat{tap}"]), TOLERANCE, f"{name} {tap}"
            )
        expected = golden[f"out/dinov3/{name}/cls{item['taps'][-1]}"]
        assert_close(features.pooled, expected, TOLERANCE, f"{name} cls")


@pytest.mark.golden
def test_a_masked_forward_is_the_published_one(golden, dinov3):
    """The mask token, which is not converted, takes the place of patches."""
    weights, tower = dinov3
    mask = golden["in/dinov3/same/patch_mask"].reshape(1, 4, 4, 1).astype(bool)
    token = golden["w/dinov3/mask_token"]

    def masked(call, args, kwargs, context):
        out = call(*args, **kwargs)
        return jnp.where(mask, token, out) if context.module.name == "embedding" else out

    with nn.intercept_methods(masked):
        image = jnp.asarray(nhwc(golden["in/dinov3/same/img"]))
        features = tower.apply({"params": weights.tree["params"]}, image)
    expected = golden["out/dinov3/same/masked_norm_patchtokens"]
    assert_close(features.maps[-1].reshape(expected.shape), expected, TOLERANCE)


@pytest.mark.golden
def test_gated_blocks_are_the_published_ones(golden):
    kwargs = golden.meta["items"]["dinov3_swiglu"]["kwargs"]
    weights = converted.encoder(golden.weights("dinov3_swiglu/"))
    assert weights.sizes["mlp_dim"] == golden.meta["items"]["dinov3_swiglu"]["hidden"]
    tower = tower_of(kwargs, weights)
    image = nhwc(golden["in/dinov3_swiglu/img"])
    features = jax.jit(tower.apply)({"params": weights.tree["params"]}, image)
    patches = golden["out/dinov3_swiglu/x_norm_patchtokens"]
    assert_close(features.maps[0].reshape(patches.shape), patches, TOLERANCE)
    assert_close(features.pooled, golden["out/dinov3_swiglu/x_norm_clstoken"], TOLERANCE)


@pytest.mark.golden
def test_rotary_positions_are_the_published_ones(golden):
    cases = [key.split("/")[2] for key in golden.keys("out/rope/") if key.endswith("/sin")]
    rescaled = golden.meta["items"]["rope_train_rescale"]
    assert len(cases) > 1
    for case in cases:
        if case == "train_rescale":
            positions = rope.coordinates(tuple(rescaled["grid"])) * rescaled["rescale"]
        else:
            positions = rope.coordinates(tuple(int(side) for side in case.split("x")))
        sin, cos = golden[f"out/rope/{case}/sin"], golden[f"out/rope/{case}/cos"]
        for ours, expected in zip(rope.table(positions, sin.shape[1]), (sin, cos), strict=True):
            assert_close(ours, expected, TOLERANCE, case)
    qkv = golden["out/dinov3/same/block0_qkv"]
    heads = golden.meta["items"]["dinov3"]["kwargs"]["num_heads"]
    query, key, _ = np.moveaxis(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 2, 0)
    grid = golden["out/dinov3/same/feat0"].shape[2:]
    table = rope.table(rope.coordinates(grid), query.shape[-1])
    for name, ours in (("q", query), ("k", key)):
        expected = golden[f"out/dinov3/same/block0_{name}_rope"]
        assert_close(
            rope.rotate(jnp.asarray(ours), table).transpose(0, 2, 1, 3), expected, TOLERANCE
        )


@pytest.mark.golden
def test_gradients_are_the_published_ones(golden, dinov3):
    weights, tower = dinov3
    image = jnp.asarray(nhwc(golden["in/dinov3/same/img"]))
    tap = golden.meta["items"]["dinov3"]["taps"][-1]
    cotangent = nhwc(golden[f"in/dinov3/grad_cotangent_feat{tap}"])

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return jnp.sum(tower.apply({"params": params}, image).maps[-1] * cotangent)

    value, gradient = loss(weights.tree["params"])
    assert_close(value, golden["out/dinov3/grad/loss"], 1e-4)
    head = "out/dinov3/grad/"
    published = {key.removeprefix(head): golden[key] for key in golden.keys(head)}
    published.pop("loss")
    masked = np.split(published["blocks.0.attn.qkv.bias"], 3)[1]
    assert not masked.any()
    expected = converted.some(published, "dinov3", weights.sizes)["params"]
    assert len(jax.tree.leaves(expected)) > len(published)

    def compare(path, array):
        ours = gradient
        for step in path:
            ours = ours[step.key]
        assert_close(ours, array, 1e-4, jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, expected)


@pytest.mark.parametrize("gated", [False, True])
def test_numbers_are_those_of_transformers(gated, tmp_path):
    torch, transformers = hugging_face.libraries()
    config = transformers.DINOv3ViTConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1,
        image_size=32, patch_size=8, num_register_tokens=3, use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    theirs = hugging_face.randomize(transformers.DINOv3ViTModel(config), torch)
    theirs.save_pretrained(tmp_path)
    weights = converted.encoder(load_file(tmp_path / "model.safetensors"))
    assert weights.kind == "huggingface_dinov3"
    assert weights.sizes["swiglu"] == gated
    image = np.random.default_rng(0).normal(size=(2, 24, 40, 3)).astype(np.float32)
    with torch.no_grad():
        last = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    tower = VisionTransformer(**{**vit.DINOV3, **weights.sizes}, out_indices=(2,))
    features = jax.jit(tower.apply)({"params": weights.tree["params"]}, image)
    assert_close(features.pooled, last[:, 0], TOLERANCE)
    assert_close(features.maps[0], last[:, 4:].reshape(features.maps[0].shape), TOLERANCE)


@pytest.mark.golden
@pytest.mark.parametrize("name", BACKBONES)
def test_every_published_size_converts_and_is_the_backbone(golden, name):
    """From names and shapes of one block and of what is outside of the blocks."""
    facts = golden.meta["published_state_dicts"][name]
    backbone = build.BACKBONES[BACKBONES[name]][1]
    for layout in ("official", "hf"):
        shapes = facts[layout].items()
        state = {key: np.broadcast_to(np.float16(0.01), shape) for key, shape in shapes}
        weights = convert_lib.convert(Checkpoint(source=name, state=state), Options())
        sizes = weights.sizes | {"depth": facts["depth"]}
        assert sizes.items() <= backbone.items() | {"swiglu": backbone.get("swiglu", False)}.items()
    tower = VisionTransformer(**backbone, out_indices=(0,))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), image)
    ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # Without the mask token and the masked biases of keys.
    assert ours == facts["params_official"] - (1 + facts["depth"]) * facts["embed_dim"]
