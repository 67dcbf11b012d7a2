from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.resize import bilinear
from semivl_jax.models.vlg_decoder import VLGDecoder, max_over_concepts, similarity
from semivl_jax.types import ClassText, Features
from semivl_jax.weights.semivl_decoder import import_decoder
from semivl_jax.weights.tree import check, flatten
from tests.golden_files import Golden, assert_close, nhwc

TOLERANCE = 1e-5
FILES = ("vlg_head", "vlg_head_conv", "vlg_head_tiny", "vlg_head_tiny_pool")


def plain(embeddings):
    """One row per class."""
    k = len(embeddings)
    return ClassText(jnp.asarray(embeddings), jnp.arange(k, dtype=jnp.int32), num_classes=k)


def decoder_of(kwargs, **changes):
    return VLGDecoder(
        channels=kwargs["channels"],
        text_channels=kwargs["text_channels"],
        up_channels=tuple(kwargs["up_channels"]),
        skip_channels=tuple(kwargs["skip_channels"]),
        num_layers=kwargs["num_layers"],
        num_heads=kwargs["num_heads"],
        mlp_dim=4 * kwargs["channels"],
        pool_size=tuple(kwargs["pool_size"]) if kwargs["pool_size"] else None,
        kernel_size=kwargs["conv1_ksize"],
        use_conv_features=kwargs["skip_from_conv_feat"],
        **changes,
    )


def golden_decoder(golden, **changes):
    kwargs = golden.meta["kwargs"]
    params = import_decoder(golden.weights(), num_heads=kwargs["num_heads"])
    return decoder_of(kwargs, **changes), params


def golden_features(golden, name):
    count = len(golden.keys(f"in/{name}/feat"))
    conv = golden[f"in/{name}/conv0"] if f"in/{name}/conv0" in golden else None
    return Features(
        maps=tuple(jnp.asarray(nhwc(golden[f"in/{name}/feat{i}"])) for i in range(count)),
        conv=None if conv is None else jnp.asarray(nhwc(conv)),
    )


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_logits_as_published(file):
    golden = Golden(file)
    model, params = golden_decoder(golden)
    text, side = plain(golden["in/text"]), golden.meta["kwargs"]["img_size"]
    decode = jax.jit(model.apply)
    for name in golden.meta["inputs"]:
        logits = decode({"params": params}, golden_features(golden, name), text)
        assert_close(logits, nhwc(golden[f"out/{name}/logits"]), TOLERANCE, f"{name} logits")
        resized = bilinear(logits, (side, side), align_corners=False)
        expected = nhwc(golden[f"out/{name}/pred_masks"])
        assert_close(resized, expected, TOLERANCE, f"{name} pred_masks")


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_published_names_cover_the_model(file):
    golden = Golden(file)
    model, params = golden_decoder(golden)
    features = golden_features(golden, next(iter(golden.meta["inputs"])))
    shapes = jax.eval_shape(model.init, jax.random.key(0), features, plain(golden["in/text"]))
    check({"params": params}, shapes, source=file)


STAGES = {
    "sim": "sim",
    "conv1": "conv1",
    "aspp": "aspp",
    "text_proj": "text_projection",
    "sem": "semantic_",
    "skip_proj": "skip_projection_",
    "up": "up",
    "head": "head",
}
"""Stored intermediates and the submodules whose output they are ("sim" is a function)."""


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_every_stage_as_published(file):
    golden = Golden(file)
    model, params = golden_decoder(golden)
    text = plain(golden["in/text"])
    k = text.num_classes
    for name in golden.meta["inputs"]:
        prefix = f"out/{name}/"
        stored = [key for key in golden.keys(prefix) if key[len(prefix) :] not in RESULTS]
        if not stored:
            continue
        features = golden_features(golden, name)
        _, state = jax.jit(
            partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
        )({"params": params}, features, text)
        captured = {
            stage: outputs["__call__"][0]
            for stage, outputs in state["intermediates"].items()
            if stage != "__call__"
        }
        sim = similarity(features.maps[-1], text.embeddings)
        captured["sim"] = sim.reshape(-1, *sim.shape[2:], 1)
        for key in stored:
            stage, _, step = key[len(prefix) :].partition("_ch")
            base = stage.rstrip("0123456789")
            base = stage if base not in STAGES else base
            actual = captured[STAGES[base] + stage[len(base) :]]
            actual = published_view(base, actual, captured, k)
            expected = golden[key]
            if step:
                actual = actual[:, :: int(step)]
            assert_close(actual, expected, TOLERANCE, f"{name} {stage}")


RESULTS = ("logits", "pred_masks")


def published_view(base, actual, captured, k):
    """Our stage in the order of axes, and up to the point, where it is stored."""
    actual = np.asarray(actual)
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
def test_fresh_parameters_are_drawn_as_torch_draws_them():
    published = [item for item in Golden("param_groups").meta["items"] if vlg(item)]
    assert published
    for item in published:
        shapes = {row[0]: row[1] for row in item["params"]}
        rows = [row for row in item["init_stats"] if row[0].startswith("decode_head.")]
        # A state dict whose "arrays" say which row a parameter comes from.
        state = {
            name.removeprefix("decode_head."): np.full(shapes[name], i, np.float32)
            for i, (name, *_) in enumerate(rows)
        }
        conv = "conv_encoder.stem.0.weight" in shapes
        row_of = flatten(import_decoder(state, num_heads=4))
        model = VLGDecoder(
            use_conv_features=conv, skip_channels=(32, shapes["decode_head.skip_proj.1.0.bias"][0])
        )
        params = flatten(
            jax.jit(model.init)(
                jax.random.key(0, impl="rbg"),  # compiles faster than the default
                published_features(conv),
                plain(np.ones((2, 512), np.float32)),
            )["params"]
        )
        assert params.keys() == row_of.keys()
        for path, value in params.items():
            name, mean, std, low, high = rows[int(row_of[path].flat[0])]
            assert_same_distribution(np.asarray(value), (mean, std, low, high), f"{path} ({name})")


def vlg(item):
    return any("decode_head.text_proj" in row[0] for row in item["init_stats"])


def published_features(conv):
    maps = tuple(jnp.zeros((1, 4, 4, c)) for c in ((768, 512) if conv else (768, 768, 512)))
    return Features(maps=maps, conv=jnp.zeros((1, 16, 16, 256)) if conv else None)


def assert_same_distribution(value, stats, what):
    _, std, low, high = stats
    if std == 0 and value.size > 1:
        assert value.min() == low and value.max() == high, what
        return
    bound = max(-low, high)
    few = 1 / np.sqrt(value.size)
    assert np.abs(value).max() <= bound * (1 + 30 * few**2 + 1e-3) or value.size < 100, what
    if value.size >= 100:
        assert np.abs(value).max() >= bound * (1 - 30 * few**2 - 1e-3), what
        assert abs(value.std() / std - 1) < 5 * few, what
        assert abs(value.mean()) < 5 * few * std, what


def test_published_sizes():
    text = plain(np.ones((21, 512), np.float32))
    for model, conv, count in [
        (VLGDecoder(), False, 2_217_185),
        (VLGDecoder(use_conv_features=True, skip_channels=(32, 32)), True, 2_176_225),
    ]:
        shapes = jax.eval_shape(model.init, jax.random.key(0), published_features(conv), text)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


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


def tiny_case(b=2, k=3, d=8, grid=(4, 5)):
    keys = jax.random.split(jax.random.key(7), 4)
    maps = tuple(
        jax.random.normal(key, (b, *grid, c)) for key, c in zip(keys, (6, 6, d), strict=False)
    )
    text = plain(np.asarray(jax.random.normal(keys[3], (k, d))))
    model = VLGDecoder(**TINY)
    features = Features(maps=maps)
    variables = jax.jit(model.init)(jax.random.key(0), features, text)
    return model, variables, features, text


def test_every_image_and_class_is_decoded_by_itself_in_order():
    model, variables, features, text = tiny_case()
    logits = jax.jit(model.apply)(variables, features, text)
    assert logits.shape == (2, 16, 20, 3)
    second = jax.jit(model.apply)(variables, jax.tree.map(lambda x: x[1:], features), text)
    np.testing.assert_allclose(logits[1:], second, atol=1e-5)
    order = np.array([2, 0, 1])
    permuted = jax.jit(model.apply)(variables, features, plain(np.asarray(text.embeddings)[order]))
    np.testing.assert_allclose(logits[..., order], permuted, atol=1e-5)


def test_concepts_compete_for_their_class():
    model, variables, features, text = tiny_case(k=4)
    every = jax.jit(model.apply)(variables, features, text)
    concepts = text.replace(class_of=jnp.array([0, 1, 1, 0], jnp.int32), num_classes=2)
    logits = jax.jit(model.apply)(variables, features, concepts)
    expected = jnp.stack([every[..., [0, 3]].max(-1), every[..., [1, 2]].max(-1)], -1)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    gradient = jax.grad(lambda x: max_over_concepts(x, concepts).sum())(every)
    np.testing.assert_allclose(gradient.sum(-1), 2.0)


def test_gradient_is_finite_at_pixels_without_embedding():
    model, variables, features, text = tiny_case()
    dense = features.maps[-1].at[0, 1, 1].set(0.0)

    def loss(params, dense):
        maps = (*features.maps[:-1], dense)
        logits = model.apply({"params": params}, features.replace(maps=maps), text)
        return jnp.square(logits).mean()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], dense)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_half_precision_stays_close():
    model, variables, features, text = tiny_case()
    full = jax.jit(model.apply)(variables, features, text)
    half = jax.jit(VLGDecoder(**TINY, dtype=jnp.bfloat16).apply)(variables, features, text)
    assert half.dtype == jnp.float32
    assert_close(half, full, 0.05, "bfloat16")


def test_grid_smaller_than_the_pooling_window():
    model, variables, features, text = tiny_case()
    small = jax.tree.map(lambda x: x[:, :1], features)
    with pytest.raises(ValueError, match="1×5 is smaller than the pooling window 2×2"):
        model.apply(variables, small, text)


def test_errors_say_what_does_not_fit():
    model, variables, features, text = tiny_case()
    # Called by `apply`, the function's own check of shapes would be there first.
    with pytest.raises(ValueError, match="8 channels, the text embeddings 5"):
        similarity.__wrapped__(features.maps[-1], jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="1 skip maps"):
        model.apply(variables, features.replace(maps=features.maps[1:]), text)
    with pytest.raises(ValueError, match="conv_encoder"):
        VLGDecoder(**TINY, use_conv_features=True).apply(variables, features, text)
    with pytest.raises(ValueError, match="unknown name: cls_seg.weight"):
        import_decoder({"cls_seg.weight": np.zeros((2, 2))}, num_heads=1)
