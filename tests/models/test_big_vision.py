"""big_vision's towers against its own code and transformers, through its own file format."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import vit
from semivl_jax.models.clip_text import SiglipText
from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.types import IMAGENET_MEAN, IMAGENET_STD
from semivl_jax.weights import convert, files
from semivl_jax.weights.layout import tupled
from semivl_jax.weights.tree import flatten
from tests import golden_files
from tests.golden_files import assert_close
from tests.models import hugging_face
from tests.models.initialisation import random_variables
from tests.weights.converted import assert_equal_trees

TOLERANCE = 1e-5

SIGLIP = {
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 24,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 37,
        "max_position_embeddings": 7,
        "projection_size": 24,
    },
}


def ours(image):
    """Pixels in [-1, 1] as our encoders get them: normalised with the ImageNet statistics."""
    unit = (image + 1) / 2
    return ((unit - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).astype(np.float32)


def random_image(side=24, batch=2):
    return np.random.default_rng(0).uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


def heads(array, count):
    """A projection (out, in) or (out,) of torch to flax's (in, heads, out / heads) or (heads, …)."""
    return array.T.reshape(*array.T.shape[:-1], count, -1)


def block(state, old, count):
    """One block or map head of transformers' SigLIP under big_vision's names."""
    found = {}
    for name, part in (("q", "query"), ("k", "key"), ("v", "value")):
        for kind, leaf in (("weight", "kernel"), ("bias", "bias")):
            array = heads(state[f"{old}.self_attn.{name}_proj.{kind}"], count)
            found[f"MultiHeadDotProductAttention_0/{part}/{leaf}"] = array
    out = state[f"{old}.self_attn.out_proj.weight"].T
    found["MultiHeadDotProductAttention_0/out/kernel"] = out.reshape(count, -1, out.shape[-1])
    found["MultiHeadDotProductAttention_0/out/bias"] = state[f"{old}.self_attn.out_proj.bias"]
    for number in (1, 2):
        for kind, leaf in (("weight", "scale"), ("bias", "bias")):
            found[f"LayerNorm_{number - 1}/{leaf}"] = state[f"{old}.layer_norm{number}.{kind}"]
    return found | mlp(state, f"{old}.mlp")


def mlp(state, old):
    return {
        f"MlpBlock_0/Dense_{i}/{leaf}": state[f"{old}.fc{i + 1}.{kind}"].T
        for i in (0, 1)
        for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
    }


def tower(state, old, new, depth, count):
    found = {}
    for i in range(depth):
        parts = block(state, f"{old}.encoder.layers.{i}", count)
        found |= {f"{new}/encoderblock_{i}/{name}": array for name, array in parts.items()}
    norm = "final_layer_norm" if old == "text_model" else "post_layernorm"
    found[f"{new}/encoder_norm/scale"] = state[f"{old}.{norm}.weight"]
    found[f"{new}/encoder_norm/bias"] = state[f"{old}.{norm}.bias"]
    return found


def big_vision_names(model):
    """A SigLIP of transformers as big_vision stores it, by an explicit table."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    vision, text = model.config.vision_config, model.config.text_config
    image = {
        "embedding/kernel": state["vision_model.embeddings.patch_embedding.weight"].transpose(
            2, 3, 1, 0
        ),
        "embedding/bias": state["vision_model.embeddings.patch_embedding.bias"],
        "pos_embedding": state["vision_model.embeddings.position_embedding.weight"][None],
        **tower(
            state,
            "vision_model",
            "Transformer",
            vision.num_hidden_layers,
            vision.num_attention_heads,
        ),
    }
    head, count = "vision_model.head", vision.num_attention_heads
    fused = {
        f"{head}.self_attn.{letter}_proj.{kind}": part
        for kind in ("weight", "bias")
        for letter, part in zip(
            "qkv", np.split(state[f"{head}.attention.in_proj_{kind}"], 3), strict=True
        )
    }
    fused |= {
        f"{head}.self_attn.out_proj.{kind}": state[f"{head}.attention.out_proj.{kind}"]
        for kind in ("weight", "bias")
    }
    fused |= {f"{head}.layer_norm{i}.{k}": np.zeros(1) for i in (1, 2) for k in ("weight", "bias")}
    parts = block(state | fused, head, count)
    parts = {name: array for name, array in parts.items() if not name.startswith("LayerNorm")}
    parts["LayerNorm_0/scale"] = state[f"{head}.layernorm.weight"]
    parts["LayerNorm_0/bias"] = state[f"{head}.layernorm.bias"]
    parts["probe"] = state[f"{head}.probe"]
    image |= {f"MAPHead_0/{name}": array for name, array in parts.items()}
    text_tower = {
        "Embed_0/embedding": state["text_model.embeddings.token_embedding.weight"],
        "pos_embedding": state["text_model.embeddings.position_embedding.weight"][None],
        "head/kernel": state["text_model.head.weight"].T,
        "head/bias": state["text_model.head.bias"],
        **tower(state, "text_model", "Encoder_0", text.num_hidden_layers, text.num_attention_heads),
    }
    return {
        **{f"img/{name}": array for name, array in image.items()},
        **{f"txt/{name}": array for name, array in text_tower.items()},
        "t": state["logit_scale"],
        "b": state["logit_bias"],
    }


def scanned(flat):
    """The same with the blocks of every tower stacked, as models that are scanned keep them."""
    stacks, rest = {}, {}
    for name, array in flat.items():
        match = re.fullmatch(r"(.*)/encoderblock_(\d+)/(.*)", name)
        if match:
            stacks.setdefault(f"{match[1]}/encoderblock/{match[3]}", {})[int(match[2])] = array
        else:
            rest[name] = array
    return rest | {name: np.stack([s[i] for i in sorted(s)]) for name, s in stacks.items()}


def converted(folder, flat, root="params/"):
    np.savez(folder / "theirs.npz", **{f"{root}{name}": array for name, array in flat.items()})
    return convert.convert_file(folder / "theirs.npz", folder / "ours.safetensors")


def assert_exported(folder, flat):
    """What was converted becomes big_vision's file again."""
    convert.convert_file(folder / "ours.safetensors", folder / "again.npz")
    with np.load(folder / "again.npz") as again:
        assert set(again.files) == {f"params/{name}" for name in flat}
        for name, array in flat.items():
            np.testing.assert_array_equal(again[f"params/{name}"], array, err_msg=name)


@pytest.mark.golden
@pytest.mark.parametrize("file", golden_files.files("big_vision*"))
def test_big_visions_own_code_computes_the_same(tmp_path, file):
    """tests/models/make_big_vision_golden.py wrote the numbers."""
    golden = golden_files.Golden(file)
    image, sizes = jnp.asarray(ours(golden["in/image"])), golden.meta["sizes"]
    for kind in golden.meta["kinds"]:
        flat = golden.weights(f"{kind}/")
        weights = converted(tmp_path, flat)
        assert weights.sizes.items() >= sizes.items()
        options = {**vit.AUGREG, **tupled(weights.sizes)}
        tower = VisionTransformer(**options, out_indices=(sizes["depth"] - 1,))
        features = jax.jit(tower.apply)({"params": weights.tree["params"]}, image)
        assert_close(features.pooled, golden[f"out/{kind}/pooled"], TOLERANCE, f"{kind} pooled")
        assert_close(features.maps[0], golden[f"out/{kind}/map"], TOLERANCE, f"{kind} map")
        assert_exported(tmp_path, flat)


@pytest.fixture(scope="module")
def siglip():
    torch, transformers = hugging_face.libraries()
    return hugging_face.randomize(
        transformers.SiglipModel(transformers.SiglipConfig(**SIGLIP)), torch
    )


def test_siglip_computes_what_transformers_computes(tmp_path, siglip):
    torch, _ = hugging_face.libraries()
    converted(tmp_path, big_vision_names(siglip))
    weights = files.load(tmp_path / "ours.safetensors", expect=files.SIGLIP)
    image, ids = random_image(), np.random.default_rng(1).integers(0, 37, (3, 7))
    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        theirs = siglip(input_ids=torch.from_numpy(ids), pixel_values=pixels)
    sizes = weights.sizes
    tower = VisionTransformer(**{**vit.SIGLIP, **tupled(sizes["img"])}, out_indices=(1,))
    text_tower, params = SiglipText(**sizes["txt"]), weights.tree["params"]
    features = jax.jit(tower.apply)({"params": params["img"]}, ours(image))
    texts = jax.jit(text_tower.apply)({"params": params["txt"]}, jnp.asarray(ids, jnp.int32))
    images, texts = l2_normalize(features.pooled), l2_normalize(texts)
    assert_close(images, theirs.image_embeds.numpy(), TOLERANCE, "image")
    logits = np.asarray(images @ texts.T) * np.exp(params["t"]) + params["b"]
    assert_close(logits, theirs.logits_per_image.numpy(), TOLERANCE, "logits")
    last = theirs.vision_model_output.last_hidden_state.numpy()
    assert_close(features.maps[0], last.reshape(features.maps[0].shape), TOLERANCE, "tokens")


@pytest.mark.parametrize("root", ["", "opt/target/"])
def test_every_layout_of_the_same_weights_is_read_alike(tmp_path, siglip, root):
    flat = big_vision_names(siglip)
    plain = converted(tmp_path, flat)
    other = converted(tmp_path, scanned(flat) | {}, root)
    assert other.sizes == plain.sizes
    assert_equal_trees(other.tree["params"], plain.tree["params"])
    assert flatten(plain.tree["params"]).keys() == flat.keys()  # names are theirs
    assert_exported(tmp_path, flat)


VIT = {
    "patch_size": 8,
    "width": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 96,
    "grid": [3, 3],
}


def vit_weights(**options):
    sizes = VIT | options
    tower = VisionTransformer(**{**vit.AUGREG, **tupled(sizes)}, out_indices=(1,))
    params = random_variables(tower, jnp.zeros((1, 24, 24, 3)))["params"]
    return sizes, tower, params


def test_the_names_of_the_first_release(tmp_path):
    """Positions that count the class token, numbered modules, a classifier: as AugReg was published."""
    params = vit_weights()[2]
    flat = flatten(params)
    share = np.random.default_rng(0).normal(size=(1, 1, 24)).astype(np.float32)
    table = np.concatenate([share, flat.pop("pos_embedding")], axis=1)
    old = {"Transformer/posembed_input/pos_embedding": table, "cls": flat.pop("cls") - share}
    for name, array in flat.items():
        name = name.replace("LayerNorm_1", "LayerNorm_2").replace("MlpBlock_0", "MlpBlock_3")
        old[name.replace("Attention_0", "Attention_1")] = array
    old |= {"head/kernel": np.ones((24, 5)), "head/bias": np.ones(5)}
    found = converted(tmp_path, old, root="").tree["params"]
    assert flatten(found).keys() == flatten(params).keys()
    for name, array in flatten(params).items():
        np.testing.assert_allclose(flatten(found)[name], array, atol=1e-6, err_msg=name)


def test_what_is_not_of_the_kind(tmp_path):
    flat = flatten(vit_weights()[2])
    flat["Transformer/encoderblock_0/LayerNorm_0/scale"] = np.ones(3, np.float32)
    with pytest.raises(
        ValueError, match=r"of another shape: Transformer/encoderblock_0/LayerNorm_0"
    ):
        converted(tmp_path, flat)
    flat["embedding/kernel"] = np.ones((192, 24), np.float32)
    with pytest.raises(ValueError, match="is of the NaFlex kind"):
        converted(tmp_path, flat)
    weights = files.Weights(format=files.BACKBONE, kind="resnet", sizes={}, tree={"params": flat})
    files.save(tmp_path / "resnet.safetensors", weights)
    with pytest.raises(ValueError, match="'resnet' cannot be exported"):
        convert.convert_file(tmp_path / "resnet.safetensors", tmp_path / "resnet.npz")
