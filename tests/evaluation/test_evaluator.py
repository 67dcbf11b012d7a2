"""The evaluator as training and prediction use it: totals, compilations, devices, labels, any size."""

import dataclasses

import jax
import numpy as np
import pytest

from semivl_jax.data import images as images_lib
from semivl_jax.evaluation import confusion, window_scores
from semivl_jax.evaluation.evaluator import Evaluator
from tests.evaluation import toy
from tests.golden_files import assert_close

SIZES = [(16, 16), (23, 37), (31, 18), (16, 27), (20, 20)]


def build(mode="zegclip_sliding_window", *, devices=1, **changes):
    devices = jax.devices()[:devices]
    return Evaluator(
        toy.apply, toy.window(mode, **changes), num_classes=toy.CLASSES, devices=devices
    )


def examples_of(sizes=SIZES):
    return [toy.make_example(i, size) for i, size in enumerate(sizes)]


def slow_confusion(examples, mode="zegclip_sliding_window"):
    total = np.zeros((toy.CLASSES, toy.CLASSES), np.int64)
    for example in examples:
        image = toy.normalize(example.image)
        scores = toy.slow_scores(toy.make_variables(), image, example.label.shape, mode=mode)
        label, prediction = example.label, scores.argmax(-1)
        if mode == "center_crop":
            top, left = ((n - m) // 2 for n, m in zip(label.shape, prediction.shape, strict=True))
            label = label[top : top + prediction.shape[0], left : left + prediction.shape[1]]
        known = label != 255
        np.add.at(total, (label[known], prediction[known]), 1)
    return total


@pytest.mark.parametrize("mode", ["zegclip_sliding_window", "sliding_window", "center_crop"])
def test_totals_equal_those_of_the_loop_over_windows(mode):
    examples = examples_of()
    result = build(mode).evaluate(toy.make_variables(), iter(examples))
    expected = slow_confusion(examples, mode)
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.images == len(examples)
    assert list(result.image_iou) == [example.id for example in examples]
    for example in examples:
        alone = slow_confusion([example], mode)
        assert result.image_iou[example.id] == pytest.approx(confusion.image_iou(alone))
    np.testing.assert_allclose(result.iou, confusion.iou(expected))
    assert result.miou == pytest.approx(result.iou.mean())


@pytest.mark.parametrize("options", [{"devices": 8}, {"window_batch": 64}])
def test_devices_batches_and_blocks_change_no_count(options, monkeypatch):
    expected = build().evaluate(toy.make_variables(), examples_of()).confusion
    found = build(**options).evaluate(toy.make_variables(), examples_of())
    np.testing.assert_array_equal(found.confusion, expected)
    monkeypatch.setattr(window_scores, "BLOCK_BYTES", 1)
    found = build(**options).evaluate(toy.make_variables(), examples_of())
    np.testing.assert_array_equal(found.confusion, expected)
    assert len(found.image_iou) == found.images == len(SIZES)


def test_a_label_larger_or_smaller_than_the_image_is_scored_at_its_own_size():
    examples = [toy.make_example(1, (20, 33), (41, 50)), toy.make_example(2, (40, 33), (17, 12))]
    result = build().evaluate(toy.make_variables(), examples)
    np.testing.assert_array_equal(result.confusion, slow_confusion(examples))


def test_no_image_size_compiles_anything_new(compiled):
    """Sizes at least the window's, other label sizes, other weights, ragged batches: nothing compiles."""
    evaluator = build()
    evaluator.evaluate(toy.make_variables(), [toy.make_example(0, (16, 16))])
    compiled.clear()
    rng = np.random.default_rng(0)
    examples = [
        toy.make_example(i, tuple(rng.integers(16, 60, 2)), tuple(rng.integers(5, 60, 2)))
        for i in range(12)
    ]
    evaluator.evaluate(toy.make_variables(1), examples)
    assert compiled == []


def test_small_images_compile_once_per_patch_grid(compiled):
    evaluator = build()
    evaluator.evaluate(toy.make_variables(), [toy.make_example(0, (16, 16))])
    compiled.clear()
    sizes = [(9, 20), (10, 31), (11, 16), (12, 17), (5, 20), (8, 40)]
    evaluator.evaluate(toy.make_variables(), examples_of(sizes))
    assert len(compiled) == 2  # 3×4 and 2×4 patches


def test_an_image_that_is_ignored_altogether_and_an_empty_set_count_nothing():
    example = toy.make_example(0, (20, 20))
    blank = dataclasses.replace(example, label=np.full((20, 20), 255, np.uint8))
    evaluator = build()
    result = evaluator.evaluate(toy.make_variables(), [blank])
    assert result.confusion.sum() == 0 and result.miou == 0 and result.images == 1
    alone = evaluator.evaluate(toy.make_variables(), [example])
    both = evaluator.evaluate(toy.make_variables(), [blank, example])
    np.testing.assert_array_equal(alone.confusion, both.confusion)
    assert evaluator.evaluate(toy.make_variables(), []).images == 0


@pytest.mark.parametrize(
    ("mode", "blocks"),
    [("zegclip_sliding_window", 1 << 30), ("sliding_window", 1), ("original", 1)],
)
def test_predictions_have_the_size_of_the_image_and_come_in_order(mode, blocks, monkeypatch):
    monkeypatch.setattr(window_scores, "BLOCK_BYTES", blocks)
    images = [example.image for example in examples_of([*SIZES, (6, 40), (7, 9)])]
    found = build(mode).predict(toy.make_variables(), iter(images), scores=True)
    for image, prediction in zip(images, found, strict=True):
        normal, size = toy.normalize(image), image.shape[:2]
        expected = toy.slow_scores(toy.make_variables(), normal, size, mode=mode)
        assert_close(prediction.scores, expected, 3e-6, f"{mode} {size}")
        assert prediction.labels.dtype == np.uint8
        np.testing.assert_array_equal(prediction.labels, prediction.scores.argmax(-1))


def test_the_image_is_resized_to_the_short_side_and_the_label_stays():
    example = toy.make_example(3, (13, 20))
    evaluator = build(short_side=26)
    result = evaluator.evaluate(toy.make_variables(), [example])
    large = images_lib.resize_short_side(example.image, short=26)
    assert large.shape == (26, 40, 3)
    expected = slow_confusion([dataclasses.replace(example, image=large)])
    np.testing.assert_array_equal(result.confusion, expected)
    (prediction,) = evaluator.predict(toy.make_variables(), [example.image])
    assert prediction.labels.shape == (13, 20) and prediction.scores is None


def test_prediction_sees_whole_images_where_evaluation_crops_the_centre():
    image = toy.make_example(0, (40, 37)).image
    window = toy.window("center_crop").for_prediction()
    evaluator = Evaluator(toy.apply, window, num_classes=toy.CLASSES)
    (whole,) = evaluator.predict(toy.make_variables(), [image], scores=True)
    (slid,) = build(devices=8).predict(toy.make_variables(), [image], scores=True)
    np.testing.assert_array_equal(whole.scores, slid.scores)


def test_border_windows_too_small_for_the_network_get_a_margin():
    """13 = 10 + 3: the last window of `sliding_window` would be 3 pixels wide."""
    seen = []

    def apply(variables, images):
        seen.append(images.shape[1:3])
        return toy.apply(variables, images)

    window = toy.window("sliding_window", least_side=8)
    evaluator = Evaluator(apply, window, num_classes=toy.CLASSES, devices=jax.devices()[:1])
    example = toy.make_example(0, (13, 21))
    (found,) = evaluator.predict(toy.make_variables(), [example.image])
    assert found.labels.shape == (13, 21) and min(min(shape) for shape in seen) >= 8
    counts = evaluator.evaluate(toy.make_variables(), [example]).confusion
    known = example.label != 255
    pairs = example.label[known], found.labels[known]
    expected = np.zeros_like(counts)
    np.add.at(expected, pairs, 1)
    np.testing.assert_array_equal(counts, expected)


def test_bad_labels_and_classes_say_what_to_do():
    example = toy.make_example(0, (20, 20))
    example.label[3, 4] = toy.CLASSES
    with pytest.raises(ValueError, match=r"image_0: label map with the value 5"):
        build().evaluate(toy.make_variables(), [example])
    other = toy.make_example(1, (20, 20), (20, 21))
    with pytest.raises(ValueError, match=r"image_1: .* give both the same size"):
        build("sliding_window").evaluate(toy.make_variables(), [other])
    with pytest.raises(ValueError, match=r"256 classes: labels are uint8"):
        Evaluator(toy.apply, toy.window(), num_classes=256)
