from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.resize import bilinear
from semivl_jax.models.vlg_decoder import VLGDecoder, similarity
from semivl_jax.types import Features
from tests import golden_models
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.golden_models import class_text
from tests.models.initialisation import assert_initialised_as_published, random_variables

TOLERANCE = 1e-5
FILES = files("vlg_head*")


def golden_features(golden, name):
    count = len(golden.keys(f"in/{name}/feat"))
    maps = tuple(jnp.asarray(nhwc(golden[f"in/{name}/feat{i}"])) for i in range(count))
    conv = f"in/{name}/conv0"
    return Features(maps=maps, conv=jnp.asarray(nhwc(golden[conv])) if conv in golden else None)


STAGES = {
    "logits": "logits",
    "pred_masks": "pred_masks",
    "sim": "sim",
    "conv1": "conv1",
    "aspp": "aspp",
    "text_proj": "text_projection",
    "sem": "semantic_",
    "skip_proj": "skip_projection_",
    "up": "up",
    "head": "head",
}
"""Stored results and the submodules whose output they are (not for the first three)."""


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_logits_and_every_stage_as_published(file):
    golden = Golden(file)
    kwargs, text = golden.meta["kwargs"], class_text(golden["in/text"])
    model, params = golden_models.vlg_decoder(kwargs), golden_models.decoder_params(golden)
    decode = jax.jit(partial(model.apply, capture_intermediates=True, mutable=["intermediates"]))
    for name in golden.meta["inputs"]:
        features = golden_features(golden, name)
        logits, state = decode({"params": params}, features, text)
        sim = similarity(features.maps[-1], text.embeddings)
        captured = {
            "logits": logits,
            "pred_masks": bilinear(logits, (kwargs["img_size"],) * 2, align_corners=False),
            "sim": sim.reshape(-1, *sim.shape[2:], 1),
        }
        for module, outputs in state["intermediates"].items():
            if module != "__call__":
                captured[module] = outputs["__call__"][0]
        for key in golden.keys(f"out/{name}/"):
            stage, _, step = key.removeprefix(f"out/{name}/").partition("_ch")
            actual = published_view(stage, captured, text.num_classes)
            if step:
                actual = actual[:, :: int(step)]
            assert_close(actual, golden[key], TOLERANCE, f"{name} {stage}")


def published_view(stage, captured, k):
    """Our stage in the order of axes, and up to the point, where it is stored."""
    base = stage.rstrip("0123456789")
    base = stage if base not in STAGES else base
    actual = np.asarray(captured[STAGES[base] + stage[len(base) :]])
    if base == "text_proj":
        b = captured["conv1"].shape[0] // k
        return np.broadcast_to(np.maximum(actual, 0), (b, *actual.shape))
    if base == "aspp":
        actual = actual + np.asarray(captured["conv1"])
    if base == "skip_proj":
        actual = np.maximum(actual, 0)
    actual = np.moveaxis(actual, -1, 1)
    if base == "sem":
        return np.moveaxis(actual.reshape(-1, k, *actual.shape[1:]), 1, 2)
    return actual


@pytest.mark.golden
def test_parameters_are_initialised_as_published():
    features = Features(maps=tuple(jnp.zeros((1, 4, 4, c)) for c in (768, 768, 512)))
    text = class_text(np.ones((2, 512), np.float32))
    having = "text_proj.0.weight"
    assert_initialised_as_published(
        VLGDecoder(), features, text, part="decode_head.", having=having
    )


TINY = {
    "channels": 16,
    "text_channels": 16,
    "up_channels": (16, 16),
    "skip_channels": (4, 4),
    "num_layers": 1,
    "num_heads": 2,
    "mlp_dim": 32,
    "pool_size": (2, 2),
    "kernel_size": 3,
}


@pytest.fixture(scope="module")
def tiny():
    """Decoder, variables, features of two images, text of three classes, and the logits."""
    keys = jax.random.split(jax.random.key(7), 4)
    maps = [
        jax.random.normal(key, (2, 4, 5, c)) for key, c in zip(keys[:3], (6, 6, 8), strict=True)
    ]
    text = class_text(jax.random.normal(keys[3], (3, 8)))
    model, features = VLGDecoder(**TINY), Features(maps=tuple(maps))
    variables, decode = random_variables(model, features, text), jax.jit(model.apply)
    return SimpleNamespace(
        model=model,
        decode=decode,
        variables=variables,
        features=features,
        text=text,
        logits=decode(variables, features, text),
    )


def test_images_are_decoded_by_themselves(tiny):
    assert tiny.logits.shape == (2, 16, 20, 3)
    other = jax.tree.map(lambda x: x.at[0].add(1.0), tiny.features)
    logits = tiny.decode(tiny.variables, other, tiny.text)
    np.testing.assert_allclose(logits[1], tiny.logits[1], atol=1e-5)
    assert np.abs(logits[0] - tiny.logits[0]).max() > 1e-3


def test_logits_are_those_of_the_rows_classes(tiny):
    rows = jnp.array([2, 0, 1], jnp.int32)
    text = tiny.text.replace(embeddings=tiny.text.embeddings[rows], class_of=rows)
    logits = tiny.decode(tiny.variables, tiny.features, text)
    np.testing.assert_allclose(logits, tiny.logits, atol=1e-5)
    concepts = tiny.text.replace(class_of=jnp.array([0, 1, 0], jnp.int32), num_classes=2)
    logits = tiny.decode(tiny.variables, tiny.features, concepts)
    expected = np.stack([tiny.logits[..., ::2].max(-1), tiny.logits[..., 1]], -1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_gradient_is_finite_at_pixels_without_embedding(tiny):
    dense = tiny.features.maps[-1].at[0, 1, 1].set(0.0)

    def loss(variables, dense):
        maps = (*tiny.features.maps[:-1], dense)
        logits = tiny.model.apply(variables, tiny.features.replace(maps=maps), tiny.text)
        return jnp.square(logits).mean()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(tiny.variables, dense)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_half_precision_stays_close(tiny):
    model = VLGDecoder(**TINY, dtype=jnp.bfloat16)
    half = jax.jit(model.apply)(tiny.variables, tiny.features, tiny.text)
    assert half.dtype == jnp.float32
    assert_close(half, tiny.logits, 0.05, "bfloat16")


def test_errors(tiny):
    def decode(model=tiny.model, features=tiny.features, text=tiny.text):
        return jax.eval_shape(model.init, jax.random.key(0), features, text)

    small = jax.tree.map(lambda x: x[:, :1], tiny.features)
    with pytest.raises(ValueError, match="1×5 is smaller than the pooling window 2×2"):
        decode(features=small)
    with pytest.raises(ValueError, match="1 skip maps"):
        decode(features=tiny.features.replace(maps=tiny.features.maps[1:]))
    with pytest.raises(ValueError, match="num_heads=3 does not divide 32 channels"):
        decode(model=VLGDecoder(**TINY | {"num_heads": 3}))
    with pytest.raises(ValueError, match="skip_channels=16 leave none of the 16 channels"):
        decode(model=VLGDecoder(**TINY | {"skip_channels": (16, 4)}))
    # Called through the decoder, the annotation's own check of shapes would come first.
    with pytest.raises(ValueError, match="8 channels, the text embeddings 5"):
        similarity.__wrapped__(tiny.features.maps[-1], jnp.ones((3, 5)))
