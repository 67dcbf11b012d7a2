"""Prediction of images of any size: as the evaluator, as published, and in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.data import images as images_lib
from semivl_jax.evaluation import predict_windows
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.evaluation.predict_windows import Predictor
from semivl_jax.models import normalization
from tests.evaluation import toy
from tests.evaluation.test_scores import assert_published, golden_network
from tests.golden_files import Golden, assert_close, nhwc

SIZES = [(16, 16), (23, 37), (61, 18), (9, 30), (5, 7), (16, 50)]


def build(mode="zegclip_sliding_window", *, devices=1, least_side=1, **options):
    return Predictor(
        toy.apply,
        num_classes=toy.CLASSES,
        crop=toy.CROP,
        patch_size=toy.PATCH,
        mode=mode,
        stride=10,
        window_batch=3,
        least_side=least_side,
        devices=jax.devices()[:devices],
        **options,
    )


def predict(predictor, images, *, scores=True):
    return list(predictor(predictor.place(toy.make_variables()), iter(images), scores=scores))


@pytest.mark.parametrize("blocks", [1 << 30, 1, 4 * 16 * 16 * 4 * toy.CLASSES])
@pytest.mark.parametrize("mode", ["zegclip_sliding_window", "sliding_window", "original"])
def test_scores_are_those_of_the_loop_over_windows_in_any_blocks(mode, blocks, monkeypatch):
    monkeypatch.setattr(predict_windows, "BLOCK_BYTES", blocks)
    images = [toy.make_example(i, size).image for i, size in enumerate(SIZES)]
    for image, found in zip(images, predict(build(mode), images), strict=True):
        expected = toy.slow_scores(
            toy.make_variables(), toy.normalize(image), image.shape[:2], mode=mode, stride=10
        )
        assert_close(found.scores, expected, 3e-6, f"{mode} {image.shape}")
        np.testing.assert_array_equal(found.labels, found.scores.argmax(-1))


def test_resized_images_in_blocks_equal_the_evaluator(monkeypatch):
    monkeypatch.setattr(predict_windows, "BLOCK_BYTES", 1)
    images = [toy.make_example(i, size).image for i, size in enumerate([(40, 53), (19, 90)])]
    evaluator = Evaluator(
        toy.apply,
        num_classes=toy.CLASSES,
        crop=toy.CROP,
        patch_size=toy.PATCH,
        mode="zegclip_sliding_window",
        stride=10,
        window_batch=3,
        resize=functools.partial(images_lib.resize_short_side, short=20),
        devices=jax.devices()[:1],
    )
    resize = functools.partial(images_lib.resize_for_windows, short=20, least=4, most=10**6)
    found = predict(build(resize=resize), images, scores=False)
    expected = evaluator.predict(toy.make_variables(), images)
    for mine, labels in zip(found, expected, strict=True):
        assert mine.scores is None
        # Blocks sum the same windows in the same order.
        np.testing.assert_array_equal(mine.labels, labels)


def test_eight_devices_predict_what_one_does():
    images = [toy.make_example(i, size).image for i, size in enumerate(SIZES)]
    for one, eight in zip(predict(build(), images), predict(build(devices=8), images), strict=True):
        np.testing.assert_allclose(one.scores, eight.scores, atol=1e-5)


def test_centre_crop_models_see_the_whole_image_through_sliding_windows():
    image = toy.make_example(0, (40, 37)).image
    (centre,), (slid,) = predict(build("center_crop"), [image]), predict(build(), [image])
    assert centre.labels.shape == (40, 37)
    np.testing.assert_array_equal(centre.scores, slid.scores)


def test_border_windows_too_small_for_the_network_get_a_margin():
    """13 = 10 + 3: the last window of `sliding_window` would be 3 pixels wide."""
    predictor = build("sliding_window", least_side=8)
    seen = []
    predictor._scores._apply = lambda v, x: (seen.append(x.shape[1:3]), toy.apply(v, x))[1]
    image = toy.make_example(0, (13, 21)).image
    (found,) = predict(predictor, [image])
    assert found.labels.shape == (13, 21) and min(min(shape) for shape in seen) >= 8


@pytest.mark.golden
@pytest.mark.slow
def test_published_scores_and_labels():
    """`out/<key>/final` and `pred` from golden weights, for images that are scored at their own size."""
    golden = Golden("eval_modes")
    items = [
        item
        for item in golden.meta["items"]
        if item["mode"] == "zegclip_sliding_window"
        and list(golden[f"in/{item['input']}/img"].shape[2:]) == item["final_shape"][2:]
    ]
    assert items
    for stride in {item["stride"] for item in items}:
        chosen = [item for item in items if item["stride"] == stride]
        network, variables, options = golden_network(golden)
        predictor = Predictor(
            network,
            **options,
            mode="zegclip_sliding_window",
            stride=stride,
            window_batch=2,
            least_side=1,
            devices=jax.devices()[:1],
        )
        # The published images are float; windows are cut from whatever `_prepared` gives.
        images = [nhwc(golden[f"in/{item['input']}/img"])[0] for item in chosen]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict_windows, "normalize", lambda image: image)
            variables = predictor.place(variables)
            for item, found in zip(
                chosen, predictor(variables, iter(images), scores=True), strict=True
            ):
                assert_published(golden, item["key"], found.scores)


def test_host_and_device_normalise_alike():
    image = toy.make_example(0, (9, 11)).image
    np.testing.assert_allclose(
        predict_windows.normalize(image), normalization.normalize(jnp.asarray(image)), atol=1e-6
    )
