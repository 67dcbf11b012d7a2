"""The evaluator as training uses it: totals, compilations, devices, bad labels, label maps."""

import dataclasses

import jax
import numpy as np
import pytest

from semivl_jax.evaluation import confusion, sliding_window
from semivl_jax.evaluation.evaluator import Evaluator
from tests.evaluation import toy

SIZES = [(16, 16), (23, 37), (31, 18), (16, 27), (20, 20)]


def build(mode="zegclip_sliding_window", *, devices=1, stride=10, window_batch=2, **options):
    return Evaluator(
        toy.apply,
        num_classes=toy.CLASSES,
        crop=toy.CROP,
        patch_size=toy.PATCH,
        mode=mode,
        stride=stride,
        window_batch=window_batch,
        devices=jax.devices()[:devices],
        **options,
    )


def slow_confusion(variables, examples, mode, stride):
    total = np.zeros((toy.CLASSES, toy.CLASSES), np.int64)
    for example in examples:
        scores = toy.slow_scores(
            variables, toy.normalize(example.image), example.label.shape, mode=mode, stride=stride
        )
        label, prediction = example.label, scores.argmax(-1)
        if mode == "center_crop":
            top, left = ((n - m) // 2 for n, m in zip(label.shape, prediction.shape, strict=True))
            label = label[top : top + prediction.shape[0], left : left + prediction.shape[1]]
        known = label != 255
        np.add.at(total, (label[known], prediction[known]), 1)
    return total


@pytest.mark.parametrize("mode", sliding_window.MODES)
def test_totals_equal_those_of_the_loop_over_windows(mode):
    variables = toy.make_variables()
    examples = [toy.make_example(i, size) for i, size in enumerate(SIZES)]
    result = build(mode).evaluate(variables, iter(examples))
    expected = slow_confusion(variables, examples, mode, 10)
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.images == len(examples)
    assert list(result.image_iou) == [example.id for example in examples]
    for example in examples:
        alone = slow_confusion(variables, [example], mode, 10)
        assert result.image_iou[example.id] == pytest.approx(confusion.image_iou(alone))
    np.testing.assert_allclose(result.iou, confusion.iou(expected))
    assert result.miou == pytest.approx(result.iou.mean())


def test_a_label_larger_or_smaller_than_the_image_is_scored_at_its_own_size():
    variables = toy.make_variables()
    examples = [toy.make_example(1, (20, 33), (41, 50)), toy.make_example(2, (40, 33), (17, 12))]
    result = build().evaluate(variables, examples)
    np.testing.assert_array_equal(
        result.confusion, slow_confusion(variables, examples, "zegclip_sliding_window", 10)
    )


def test_eight_devices_count_the_same_pixels_as_one():
    variables = toy.make_variables()
    examples = [toy.make_example(i, size) for i, size in enumerate(SIZES)]
    one = build(devices=1).evaluate(variables, examples)
    eight = build(devices=8).evaluate(variables, examples)
    np.testing.assert_array_equal(one.confusion, eight.confusion)


def test_no_image_size_compiles_anything_new(compiled):
    """Sizes at least the window's, other label sizes, other weights, ragged batches: nothing compiles."""
    evaluator = build()
    first = evaluator.evaluate(toy.make_variables(), [toy.make_example(0, (16, 16))])
    compiled.clear()
    rng = np.random.default_rng(0)
    sizes = [tuple(rng.integers(16, 60, 2)) for _ in range(12)]
    labels = [tuple(rng.integers(5, 60, 2)) for _ in range(12)]
    examples = [
        toy.make_example(i, size, label)
        for i, (size, label) in enumerate(zip(sizes, labels, strict=True))
    ]
    later = evaluator.evaluate(toy.make_variables(1), examples)
    assert compiled == []
    assert later.compilations == first.compilations


def test_small_images_compile_once_per_patch_grid(compiled):
    evaluator = build()
    first = evaluator.evaluate(toy.make_variables(), [toy.make_example(0, (16, 16))])
    compiled.clear()
    sizes = [(9, 20), (10, 31), (11, 16), (12, 17), (5, 20), (8, 40)]
    examples = [toy.make_example(i, size) for i, size in enumerate(sizes)]
    later = evaluator.evaluate(toy.make_variables(), examples)
    assert later.compilations - first.compilations == 2  # 3×4 and 2×4 patches
    assert len(compiled) == 2


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


def test_counts_move_to_the_host_before_they_could_overflow(monkeypatch):
    variables = toy.make_variables()
    examples = [toy.make_example(i, size) for i, size in enumerate(SIZES)]
    expected = build().evaluate(variables, examples).confusion
    monkeypatch.setattr("semivl_jax.evaluation.evaluator.MOST_PIXELS", 3 * toy.CROP**2)
    np.testing.assert_array_equal(build().evaluate(variables, examples).confusion, expected)


def test_label_maps_have_the_size_of_the_image_and_come_in_order():
    variables = toy.make_variables()
    images = [toy.make_example(i, size).image for i, size in enumerate([*SIZES, (6, 40), (7, 9)])]
    for image, found in zip(images, build().predict(variables, iter(images)), strict=True):
        scores = toy.slow_scores(
            variables,
            toy.normalize(image),
            image.shape[:2],
            mode="zegclip_sliding_window",
            stride=10,
        )
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, scores.argmax(-1))


def test_the_image_may_be_resized_first_and_the_label_stays():
    variables = toy.make_variables()

    def twice(image):
        return image.repeat(2, axis=0).repeat(2, axis=1)

    example = toy.make_example(3, (20, 13))
    result = build(resize=twice).evaluate(variables, [example])
    large = dataclasses.replace(example, image=twice(example.image))
    np.testing.assert_array_equal(
        result.confusion, slow_confusion(variables, [large], "zegclip_sliding_window", 10)
    )
    (prediction,) = build(resize=twice).predict(variables, [example.image])
    assert prediction.shape == (20, 13)


def test_bad_labels_and_options_say_what_to_do():
    example = toy.make_example(0, (20, 20))
    example.label[3, 4] = toy.CLASSES
    with pytest.raises(ValueError, match="label of image_0 holds the value 5"):
        build().evaluate(toy.make_variables(), [example])
    other = toy.make_example(1, (20, 20), (20, 21))
    with pytest.raises(ValueError, match=r"image_1: .* give both the same size"):
        build("sliding_window").evaluate(toy.make_variables(), [other])
    with pytest.raises(ValueError, match=r"evaluation\.short_side resizes"):
        build("sliding_window", resize=np.asarray)
    with pytest.raises(ValueError, match=r"evaluation\.window_batch=0"):
        build(window_batch=0)
    with pytest.raises(ValueError, match=r"evaluation\.mode='sliding' is unknown"):
        build("sliding")
