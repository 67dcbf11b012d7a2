"""Scores and choices of what to label next."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from semivl_jax.evaluation.acquisition import acquisition, pick_images, pick_regions, window
from semivl_jax.models.resize import bilinear
from tests.golden_files import Golden, assert_close, nhwc

TOLERANCE = 1e-5
NAME = "methods/ripu"
PUBLISHED_CLASSES = 19  # the published code divides by log 19 whatever the classes


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(NAME)


def cases(prefix: str) -> list[str]:
    return [name for name in Golden(NAME).meta["items"] if name.startswith(prefix)]


def probabilities(golden, case, *sizes):
    """Of every image, resized as published."""
    logits = jnp.asarray(nhwc(golden[f"in/{case}/logits_low"]))
    for size in sizes:
        logits = bilinear(logits, tuple(size), align_corners=True)
    return softmax(np.asarray(logits), axis=-1)


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("score/"))
def test_scores(case, golden):
    item = golden.meta["items"][case]
    (image,) = probabilities(golden, case, item["size"])
    np.testing.assert_array_equal(image.argmax(-1), golden[f"out/{case}/label"])
    for radius in item["k"]:
        found = acquisition(image, radius=radius, classes=PUBLISHED_CLASSES)
        nats = acquisition(image, radius=radius, classes=1)
        head = f"out/{case}/k{radius}"
        for name, ours in (
            (f"{head}/impurity", found.impurity),
            (f"{head}/uncertainty", found.uncertainty),
            (f"{head}/score", found.score),
            (f"{head}/pa_impurity_nats", nats.impurity),
            (f"{head}/pa_score", nats.impurity * nats.entropy),
            (f"out/{case}/pixel_entropy_nats", nats.entropy),
        ):
            assert_close(ours, golden[name], TOLERANCE, name)


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("pick/"))
def test_regions(case, golden):
    """Where every pixel is blocked, the published loop picks the first one again and again; ours ends."""
    item = golden.meta["items"][case]
    blocked = golden[f"in/{case}/active0"].astype(bool)
    selected = np.zeros_like(blocked)
    labels = golden[f"in/{case}/label"]
    images = probabilities(golden, case, item["input"], item["size"])
    scores = []
    for index, image in enumerate(images):
        if item["setting"] == "RA":
            score = acquisition(image, radius=item["k"], classes=PUBLISHED_CLASSES).score
        else:
            found = acquisition(image, radius=item["k"], classes=1)
            score = found.impurity * found.entropy
        before = golden[f"out/{case}/score_img{index}"]
        free = np.isfinite(before)
        assert_close(score[free], before[free], TOLERANCE, case)
        scores.append(score)
    for turn in range(item["do_rounds"]):
        head = f"out/{case}/round{turn}"
        for index, score in enumerate(scores):
            count = item["picks_per_round"]
            picks = pick_regions(
                score, count, block_radius=item["block_radius"], blocked=blocked[index]
            )
            expected = golden[f"{head}/picks_hw"][index].tolist()
            assert [list(pick) for pick in picks] == expected[: len(picks)]
            if len(picks) < count:
                assert blocked[index].all()
                assert expected[len(picks) :] == [[0, 0]] * (count - len(picks))
                picks.append((0, 0))
            for pick in picks:
                selected[(index, *window(*pick, item["label_radius"]))] = True
            mask = np.where(selected[index], labels[index], 255)
            np.testing.assert_array_equal(blocked[index], golden[f"{head}/active"][index])
            np.testing.assert_array_equal(mask, golden[f"{head}/mask"][index])


def test_a_uniform_prediction_has_no_impurity_and_a_chequerboard_the_most():
    rows, columns = np.indices((8, 8))
    flat = np.full((8, 8, 2), [0.9, 0.1])
    board = np.where(((rows + columns) % 2)[..., None], [0.9, 0.1], [0.1, 0.9])
    np.testing.assert_allclose(acquisition(flat, radius=1).score, 0, atol=1e-5)
    assert acquisition(board, radius=1).impurity[1:-1, 1:-1].min() > 0.98
    flipped = acquisition(board[:, ::-1], radius=2).score
    np.testing.assert_allclose(flipped[:, ::-1], acquisition(board, radius=2).score)


def test_images_are_chosen_by_score_and_by_new_classes():
    shares = np.asarray([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], float)
    scores, known = [0.9, 0.8, 0.3, 0.2], np.asarray([[1, 0, 0]], float)
    chosen = {d: pick_images(scores, shares, 3, known=known, diversity=d) for d in (0.0, 1.0)}
    assert chosen[0.0] == [0, 1, 2]
    assert chosen[1.0] == [2, 3, 1]
    assert len(pick_images(scores, shares, 9, known=known, diversity=1.0)) == 4
