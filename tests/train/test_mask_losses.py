"""ZegCLIP's criterion: published numbers, closed forms, and labels without anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train.mask_losses import mask_loss, mask_weights
from tests.golden_files import Golden, assert_close, nhwc


@pytest.mark.golden
def test_terms_and_gradients_as_published():
    golden = Golden("seg_loss_plus")
    kwargs = golden.meta["kwargs"]

    def total(logits, label):
        loss = mask_loss(
            logits,
            label,
            mask_weights(label, scale=kwargs["loss_weight"]),
            focal_weight=kwargs["mask_weight"],
            dice_weight=kwargs["dice_weight"],
        )
        return loss.total, loss

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    assert golden.meta["items"]
    for name in (item["name"] for item in golden.meta["items"]):
        (value, loss), gradient = run(nhwc(golden[f"in/{name}/logits"]), golden[f"in/{name}/label"])
        assert_close(loss.focal, golden[f"out/{name}/loss_mask"], 1e-5, f"{name} focal")
        assert_close(loss.dice, golden[f"out/{name}/loss_dice"], 1e-5, f"{name} dice")
        assert_close(value, golden[f"out/{name}/total"], 1e-5, f"{name} total")
        assert_close(gradient, nhwc(golden[f"out/{name}/grad"]), 1e-5, f"{name} gradient")


def test_closed_form():
    """Two classes, one of them shown, logits 0: every probability is a half."""
    label = jnp.zeros((1, 2, 2), jnp.uint8)
    loss = jax.jit(mask_loss)(jnp.zeros((1, 2, 2, 2)), label, mask_weights(label, scale=0.5))
    log2, focal = np.log(2), (0.25 + 0.75) * 0.25
    np.testing.assert_allclose(loss.focal, 0.5 * 20 * focal * log2, rtol=1e-6)
    np.testing.assert_allclose(loss.dice, 0.5 * (1 - (2 * 2 + 1) / (2 + 4 + 1)), rtol=1e-6)


def test_a_batch_without_labels_has_a_finite_loss_and_gradient():
    label = jnp.full((2, 4, 4), 255, jnp.uint8)
    logits = jnp.full((2, 4, 4, 3), 200.0)  # sigmoid rounds to 1
    run = jax.jit(
        jax.value_and_grad(lambda logits: mask_loss(logits, label, mask_weights(label)).total)
    )
    loss, gradient = run(logits)
    np.testing.assert_allclose(loss, 20 * 0.75 * 200 * 2 * 3, rtol=1e-6)
    assert np.all(np.isfinite(gradient))
