import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import resize
from semivl_jax.models.resize import bilinear
from semivl_jax.train import losses, pseudo
from tests.golden_files import Golden, assert_close, nhwc

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("losses")


def items() -> list[dict]:
    return Golden("losses").meta["items"]


def criterion(item: dict, golden: Golden):
    """The function of the logits that a record of the file was computed with."""
    label = jnp.asarray(golden[f"in/{item['label']}"])
    ignore = jnp.asarray(golden["in/ignore_mask"] == 255)
    if "conf_mode" in item:
        options = {"mode": item["conf_mode"], "threshold": item["conf_thresh"]}
        confidence = jnp.asarray(golden["in/conf"])
        return lambda x: losses.consistency(
            losses.cross_entropy(x, label), confidence, ignore, **options
        )
    if "mcc_loss_reduce" in item:
        return lambda x: losses.guidance(
            losses.cross_entropy(x, label), label, ignore, reduction=item["mcc_loss_reduce"]
        )
    if "min_kept" in item:
        options = {"threshold": item["thresh"], "min_kept": item["min_kept"]}
        return lambda x: losses.ohem(x, label, **options)
    return lambda x: losses.supervised(x, label)


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


def all_criteria(label, confidence, ignore):
    yield lambda x: losses.supervised(x, label)
    for min_kept in (0, 3, 10**6):
        yield lambda x, k=min_kept: losses.ohem(x, label, threshold=0.7, min_kept=k)
    for mode in ("pixelwise", "pixelratio", "pixelavg"):
        yield lambda x, m=mode: losses.consistency(
            losses.cross_entropy(x, label), confidence, ignore, mode=m, threshold=0.5
        )
    for reduction in ("mean", "mean_valid", "mean_all"):
        yield lambda x, r=reduction: losses.guidance(
            losses.cross_entropy(x, label), label, ignore, reduction=r
        )


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


def test_no_confident_pixel_is_zero(case):
    for mode in ("pixelwise", "pixelratio"):
        loss = losses.consistency(
            losses.cross_entropy(case["logits"], case["label"]),
            case["confidence"],
            case["ignore"],
            mode=mode,
            threshold=1.5,
        )
        assert loss == 0.0


def test_confidence_equal_to_the_threshold_counts(case):
    half = jnp.full_like(case["confidence"], 0.5)
    nowhere = jnp.zeros_like(case["ignore"])
    pixels = losses.cross_entropy(case["logits"], case["label"])
    loss = losses.consistency(pixels, half, nowhere, mode="pixelwise", threshold=0.5)
    np.testing.assert_allclose(loss, losses.supervised(case["logits"], case["label"]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_cross_entropy_of_ignored_pixels(case, dtype):
    label = case["label"].at[0, 0].set(255).astype(dtype)
    loss = losses.cross_entropy(case["logits"], label)
    grad = jax.grad(lambda x: losses.cross_entropy(x, label).sum())(case["logits"])
    assert not loss[0, 0].any()
    assert not grad[0, 0].any()
    assert (loss[1:] > 0).all()
    assert jnp.abs(grad[1:]).max(axis=-1).min() > 0


def test_low_precision_logits_are_summed_in_float32(case):
    low = case["logits"].astype(jnp.bfloat16)
    loss = losses.cross_entropy(low, case["label"])
    assert loss.dtype == jnp.float32
    expected = losses.cross_entropy(low.astype(jnp.float32), case["label"])
    np.testing.assert_array_equal(loss, expected)


def test_large_logits_do_not_overflow(case):
    value, grad = jax.value_and_grad(losses.supervised)(1e4 * case["logits"], case["label"])
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()


@pytest.mark.parametrize("min_kept", [1, 7, 50, 105])
def test_ohem_keeps_at_least_min_kept(case, min_kept):
    grad = jax.grad(losses.ohem)(case["logits"], case["label"], threshold=0.01, min_kept=min_kept)
    assert jnp.any(grad != 0, axis=-1).sum() >= min_kept


def test_unknown_options_are_named(case):
    arguments = case["logits"], case["label"]
    loss = losses.cross_entropy(*arguments)
    unchecked = losses.consistency.__wrapped__, losses.guidance.__wrapped__
    with pytest.raises(ValueError, match=r"'pixel'.*choose"):
        unchecked[0](loss, case["confidence"], case["ignore"], mode="pixel", threshold=0.5)
    with pytest.raises(ValueError, match=r"'sum'.*choose"):
        unchecked[1](loss, case["label"], case["ignore"], reduction="sum")
    with pytest.raises(ValueError, match="min_kept = -1"):
        losses.ohem(*arguments, threshold=0.5, min_kept=-1)


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
    best = pseudo.pseudo_labels(bilinear(grid, size, align_corners=False))
    monkeypatch.setattr(resize, "BLOCK_BYTES", 4 * 2 * 20 * 7 * 5)  # 5 rows fit, 4 divide 24
    ours = jax.jit(jax.value_and_grad(total), static_argnums=1)
    text = ours.lower(grid, False).as_text()
    assert "2x4x20x7xf32" in text and "2x24x20x7xf32" not in text
    value, grad = ours(grid, False)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(grad, expected[1], atol=1e-5)
    mine = pseudo.pseudo_labels(grid, size=size)
    np.testing.assert_array_equal(mine.label, best.label)
    np.testing.assert_allclose(mine.confidence, best.confidence, rtol=1e-6)
