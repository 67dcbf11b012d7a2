import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train import pseudo
from tests.golden_files import Golden, nhwc


@pytest.mark.golden
def test_cutmix_of_images_and_labels():
    golden = Golden("losses")
    box = jnp.asarray(golden["in/cutmix/box"] == 1)
    image = pseudo.mix(
        box,
        jnp.asarray(nhwc(golden["in/cutmix/img"])),
        jnp.asarray(nhwc(golden["in/cutmix/img_other"])),
    )
    np.testing.assert_array_equal(image, nhwc(golden["out/cutmix/img"]))
    label = pseudo.mix(
        box, jnp.asarray(golden["in/cutmix/label"]), jnp.asarray(golden["in/cutmix/label_other"])
    )
    np.testing.assert_array_equal(label, golden["out/cutmix/label"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bool_, jnp.uint8])
def test_mix_keeps_the_dtype(dtype):
    box = jnp.array([[[True, False]]])
    mixed = pseudo.mix(box, jnp.zeros((1, 1, 2), dtype), jnp.ones((1, 1, 2), dtype))
    assert mixed.dtype == dtype
    np.testing.assert_array_equal(mixed, [[[1, 0]]])


def test_mix_of_two_dtypes_is_an_error():
    box = jnp.ones((1, 1, 2), bool)
    with pytest.raises(ValueError, match="int32 with uint8"):
        pseudo.mix(box, jnp.zeros((1, 1, 2), jnp.int32), jnp.zeros((1, 1, 2), jnp.uint8))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pseudo_labels(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), dtype)
    made = jax.jit(pseudo.pseudo_labels)(logits)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    np.testing.assert_array_equal(made.label, probabilities.argmax(-1))
    np.testing.assert_allclose(made.confidence, probabilities.max(-1), rtol=1e-6)


def test_no_gradient_reaches_the_teacher():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 3)), jnp.float32)
    grad = jax.grad(lambda x: pseudo.pseudo_labels(x).confidence.sum())(logits)
    assert not grad.any()
