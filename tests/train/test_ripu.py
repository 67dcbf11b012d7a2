"""RIPU's losses against the published code, and what they do with masks of few pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train import losses
from semivl_jax.train.methods import ripu
from semivl_jax.types import StreamViews, Views
from tests.golden_files import Golden, assert_close, nhwc

NAME = "methods/ripu"
TOLERANCE = 1e-5


@pytest.mark.golden
@pytest.mark.parametrize(
    "case", [name for name in Golden(NAME).meta["items"] if name.startswith("loss/")]
)
def test_losses_are_the_published_ones(case):
    golden, item = Golden(NAME), Golden(NAME).meta["items"][case]
    logits, source = (
        jnp.asarray(nhwc(golden[f"in/{case}/{name}"])) for name in ("logits", "src_logits")
    )
    label, sparse = (
        jnp.asarray(golden[f"in/{case}/{name}"]) for name in ("label", "tgt_sparse_label")
    )
    edge = ripu.boundaries(label)
    np.testing.assert_array_equal(edge, golden[f"out/{case}/boundary_used"])
    np.testing.assert_array_equal(
        edge, (golden[f"out/{case}/boundary"] == 1) & (np.asarray(label) != 255)
    )
    weight = losses.ratio(edge, edge.sum())

    def check(name, function, of, gradient=None):
        value, grad = jax.jit(jax.value_and_grad(function))(of)
        assert_close(value, golden[f"out/{case}/{name}"], TOLERANCE, name)
        expected = nhwc(golden[f"out/{case}/{gradient or name + '_grad'}"])
        assert_close(grad, expected, TOLERANCE, f"{name} gradient")

    for distance in ("l1", "kl"):
        name = f"lc_{distance}"
        maps = ripu.consistency_map(jax.nn.softmax(logits), distance)
        assert_close(maps, golden[f"out/{case}/{name}_map"], TOLERANCE, f"{name} map")
        consistency = functools.partial(ripu.local_consistency, distance=distance)
        check(name, lambda x, f=consistency: f(x, label, weight), logits)
    ones = jnp.ones(label.shape)
    negative = functools.partial(
        ripu.negative_learning, label=label, weight=ones, threshold=item["thr"]
    )
    check("neg", negative, logits)
    share = np.mean(np.asarray(jax.nn.softmax(logits)) < np.float32(item["thr"]))
    assert_close(share, golden[f"out/{case}/neg_mask_share"], TOLERANCE, "share")

    def cross_entropy(logits, label):
        (value,) = losses.weighted_cross_entropies(
            logits, [label], [losses.supervised_weights(label)]
        )
        return value

    fixed = cross_entropy(source, label)
    fixed += 0.1 * ripu.local_consistency(source, label, weight, distance="l1")
    check(
        "total", lambda x: fixed + cross_entropy(x, sparse) + negative(x), logits, "total_grad_tgt"
    )


def test_few_labelled_pixels_count_as_many_and_none_as_nothing():
    label = np.full((3, 4, 4), 255, np.int32)
    label[0], label[1, 0, :2] = 0, (1, 2)
    blank = jnp.zeros((3, 4, 4, 3))
    stream = StreamViews(blank, blank, blank, jnp.ones((3, 4, 4), bool))
    views = Views(x=blank, y=jnp.asarray(label), streams={"unlabelled": stream})
    targets = ripu.Ripu().targets({}, views, {}, jnp.float32(0))
    plain, consistency, negative = targets.views["x"]
    np.testing.assert_allclose(plain.weight.sum((1, 2)), [0.5, 0.5, 0], atol=1e-6)
    assert {
        "consistency_x": 0.1,
        "negative_x": 0.5,
        "negative_w": 0.5,
    }.items() <= targets.factors.items()
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 3)), jnp.float32)
    (weak,) = targets.views["w"]
    assert weak.criterion(logits, weak.label, weak.weight) == 0  # padding only
    assert negative.criterion(jnp.zeros((3, 4, 4, 3)), negative.label, negative.weight) == 0
    empty = views.replace(y=jnp.full((3, 4, 4), 255))
    _, consistency, _ = ripu.Ripu().targets({}, empty, {}, jnp.float32(0)).views["x"]
    assert consistency.criterion(logits, consistency.label, consistency.weight) == 0
