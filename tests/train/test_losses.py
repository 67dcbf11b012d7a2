import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import resize
from semivl_jax.models.resize import bilinear
from semivl_jax.train import losses
from semivl_jax.train.pseudo_labels import consistency_weights, pseudo_labels
from tests.golden_files import Golden, assert_close, nhwc

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("losses")


def items() -> list[dict]:
    return Golden("losses").meta["items"]


def criterion(item: dict, golden: Golden):
    """A record's criterion: Σ weight · CE with weights known before the gradient. OHEM reads predictions."""
    label = jnp.asarray(golden[f"in/{item['label']}"])
    ignore = jnp.asarray(golden["in/ignore_mask"] == 255)
    if "min_kept" in item:
        options = {"threshold": item["thresh"], "min_kept": item["min_kept"]}
        return lambda x: losses.ohem(x, label, **options)
    if "conf_mode" in item:
        weight = consistency_weights(
            jnp.asarray(golden["in/conf"]), ignore, mode=item["conf_mode"],
            threshold=item["conf_thresh"],
        )  # fmt: skip
    elif "mcc_loss_reduce" in item:
        weight = losses.guidance_weights(label, ignore, reduction=item["mcc_loss_reduce"])
    else:
        weight = losses.supervised_weights(label)
    return lambda x: losses.weighted_cross_entropies(x, [label], [weight])[0]


@pytest.mark.golden
@pytest.mark.parametrize("item", items(), ids=lambda item: item["name"])
def test_value_and_gradient(item, golden):
    logits = jnp.asarray(nhwc(golden["in/logits"]))
    value, grad = jax.jit(jax.value_and_grad(criterion(item, golden)))(logits)
    assert_close(value, golden[f"out/{item['name']}/loss"], TOLERANCE, "loss")
    assert_close(grad, nhwc(golden[f"out/{item['name']}/grad"]), TOLERANCE, "gradient")


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    shape = (3, 5, 7)
    return {
        "logits": jnp.asarray(4 * rng.normal(size=(*shape, 4)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 4, shape), jnp.int32),
        "confidence": jnp.asarray(rng.uniform(size=shape), jnp.float32),
        "ignore": jnp.asarray(rng.uniform(size=shape) < 0.3),
    }


def all_weights(label, confidence, ignore):
    yield losses.supervised_weights(label)
    for mode in ("pixelwise", "pixelratio", "pixelavg"):
        yield consistency_weights(confidence, ignore, mode=mode, threshold=0.5)
    for reduction in ("mean", "mean_valid", "mean_all"):
        yield losses.guidance_weights(label, ignore, reduction=reduction)


def all_criteria(label, confidence, ignore):
    for weight in all_weights(label, confidence, ignore):
        yield lambda x, w=weight: losses.weighted_cross_entropies(x, [label], [w])[0]
    for min_kept in (0, 3, 10**6):
        yield lambda x, k=min_kept: losses.ohem(x, label, threshold=0.7, min_kept=k)


def test_nothing_to_learn_from_is_zero_not_nan(case):
    nothing = jnp.full_like(case["label"], 255)
    for function in all_criteria(nothing, case["confidence"], jnp.ones_like(case["ignore"])):
        value, grad = jax.value_and_grad(function)(case["logits"])
        assert value == 0.0
        assert not grad.any()


def test_one_image_that_is_all_padding_stays_finite(case):
    ignore = case["ignore"].at[1].set(True)
    for function in all_criteria(case["label"], case["confidence"], ignore):
        value, grad = jax.value_and_grad(function)(case["logits"])
        assert jnp.isfinite(value)
        assert jnp.isfinite(grad).all()


def test_weights_of_a_known_batch():
    """Two images of four pixels, by hand; the last pixel of the second image is padding."""
    confidence = jnp.array([[[1.0, 0.5], [0.25, 0.25]], [[0.5, 0.0], [0.25, 1.0]]])
    ignore = jnp.zeros((2, 2, 2), bool).at[1, 1, 1].set(True)
    weights = functools.partial(consistency_weights, confidence, ignore, threshold=0.5)
    chosen = jnp.array([[[1, 1], [0, 0]], [[1, 0], [0, 0]]])
    np.testing.assert_allclose(weights(mode="pixelwise"), chosen / 7, rtol=1e-6)
    ratio = jnp.array([2 / 4, 1 / 3])[:, None, None]
    expected = jnp.broadcast_to(ratio / 7, ignore.shape)  # padding stays in the numerator
    np.testing.assert_allclose(weights(mode="pixelratio"), expected, rtol=1e-6)
    average = (2.0 / 4 + 0.75 / 3) / 7
    np.testing.assert_allclose(weights(mode="pixelavg"), average, rtol=1e-6)
    label = jnp.where(chosen == 1, 3, 255)
    for reduction, count in (("mean", 3), ("mean_valid", 7), ("mean_all", 8)):
        guidance = losses.guidance_weights(label, ignore, reduction=reduction)
        np.testing.assert_allclose(guidance, chosen / count, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_cross_entropy_of_ignored_pixels(case, dtype):
    label = case["label"].at[0, 0].set(255).astype(dtype)
    (loss,) = losses.cross_entropies(case["logits"], label)
    grad = jax.grad(lambda x: losses.cross_entropies(x, label)[0].sum())(case["logits"])
    assert not loss[0, 0].any()
    assert not grad[0, 0].any()
    assert (loss[1:] > 0).all()
    assert jnp.abs(grad[1:]).max(axis=-1).min() > 0


def test_low_precision_logits_are_summed_in_float32(case):
    low = case["logits"].astype(jnp.bfloat16)
    (loss,) = losses.cross_entropies(low, case["label"])
    assert loss.dtype == jnp.float32
    (expected,) = losses.cross_entropies(low.astype(jnp.float32), case["label"])
    np.testing.assert_array_equal(loss, expected)


def test_large_logits_do_not_overflow(case):
    weight = losses.supervised_weights(case["label"])
    value, grad = jax.value_and_grad(
        lambda x: losses.weighted_cross_entropies(x, [case["label"]], [weight])[0]
    )(1e4 * case["logits"])
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()


@pytest.mark.parametrize("min_kept", [1, 7, 50, 105])
def test_ohem_keeps_at_least_min_kept(case, min_kept):
    grad = jax.grad(losses.ohem)(case["logits"], case["label"], threshold=0.01, min_kept=min_kept)
    assert jnp.any(grad != 0, axis=-1).sum() >= min_kept


def test_large_logits_are_never_whole(monkeypatch):
    """A block of rows at a time, two label maps at once: the same values, gradients and pseudo-labels."""
    grid = jax.random.normal(jax.random.key(0), (2, 6, 5, 7)) * 3
    keys = jax.random.split(jax.random.key(1), 2)
    size = (24, 20)
    labels = [jax.random.randint(key, (2, *size), 0, 7).at[:, :3].set(255) for key in keys]
    weights = jax.random.uniform(jax.random.key(2), (2, 2, *size))

    def total(grid, whole):
        logits = bilinear(grid, size, align_corners=False) if whole else grid
        return sum(
            jnp.sum(weight * loss)
            for weight, loss in zip(weights, losses.cross_entropies(logits, *labels), strict=True)
        )

    expected = jax.value_and_grad(total)(grid, True)
    best = pseudo_labels(bilinear(grid, size, align_corners=False))
    monkeypatch.setattr(resize, "BLOCK_BYTES", 4 * 2 * 20 * 7 * 5)  # 5 rows fit, 4 divide 24
    ours = jax.jit(jax.value_and_grad(total), static_argnums=1)
    text = ours.lower(grid, False).as_text()
    assert "2x4x20x7xf32" in text and "2x24x20x7xf32" not in text
    value, grad = ours(grid, False)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(grad, expected[1], atol=1e-5)
    mine = pseudo_labels(grid, size=size)
    np.testing.assert_array_equal(mine.label, best.label)
    np.testing.assert_allclose(mine.confidence, best.confidence, rtol=1e-6)
