"""Batched windows and tiles give what a loop over windows gives; and the published score maps."""

import jax
import numpy as np
import pytest

from semivl_jax.evaluation import sliding_window
from semivl_jax.evaluation.scores import WindowScores, gather
from semivl_jax.models import build as build_lib
from semivl_jax.models.resize import bilinear
from tests import golden_models
from tests.evaluation import toy
from tests.golden_files import Golden, assert_close, nhwc

SIZES = [(16, 16), (23, 37), (40, 18), (9, 30), (16, 50), (5, 7)]


def score_maps(scores, variables, images, sizes):
    requests = [(image, size, size) for image, size in zip(images, sizes, strict=True)]
    variables = jax.device_put(variables, scores.replicated)
    for (image, *_), (size, tiles) in zip(requests, scores(variables, iter(requests)), strict=True):
        yield gather(jax.device_get(tiles), scores.output_size(image.shape[:2], size))


def build(mode, *, window_batch=3, devices=1, patch_size=toy.PATCH):
    return WindowScores(
        toy.apply,
        num_classes=toy.CLASSES,
        crop=toy.CROP,
        patch_size=patch_size,
        mode=mode,
        stride=7 if mode in sliding_window.STRIDED else None,
        window_batch=window_batch,
        devices=jax.devices()[:devices],
    )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("mode", sliding_window.MODES)
def test_every_mode_and_size_equals_the_loop_over_windows(mode, devices):
    variables = toy.make_variables()
    images = [toy.normalize(toy.make_example(i, size).image) for i, size in enumerate(SIZES)]
    labels = [size if i % 2 else (size[0] + 9, size[1] - 2) for i, size in enumerate(SIZES)]
    if mode not in sliding_window.RESIZES_SCORES:
        labels = SIZES
    scores = build(mode, devices=devices)
    for image, size, found in zip(
        images, labels, score_maps(scores, variables, images, labels), strict=True
    ):
        expected = toy.slow_scores(
            variables, image, size, mode=mode, stride=7 if mode in sliding_window.STRIDED else None
        )
        assert_close(found, expected, 2e-6, f"{mode} {image.shape} → {size}")


@pytest.mark.parametrize("window_batch", [1, 2, 5, 64])
def test_ragged_batches_change_nothing(window_batch):
    variables = toy.make_variables()
    images = [toy.normalize(toy.make_example(i, size).image) for i, size in enumerate(SIZES)]
    whole = list(score_maps(build("sliding_window"), variables, images, SIZES))
    other = score_maps(build("sliding_window", window_batch=window_batch), variables, images, SIZES)
    for a, b in zip(whole, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_images_come_back_in_order_and_few_tiles_are_alive():
    """Rare shapes must not hold back an unbounded number of images."""
    scores = build("zegclip_sliding_window", window_batch=2)
    size, alive, most = (16, 16), 0, 0

    def requests():
        nonlocal alive, most
        for i in range(40):
            alive, most = alive + 1, max(most, alive + 1)
            # Every tenth image is smaller than the window: its batch never fills.
            h = 6 if i % 10 == 0 else 16
            yield np.zeros((h, 16, 3), np.float32), size, i

    order = []
    for tag, _ in scores(jax.device_put(toy.make_variables(), scores.replicated), requests()):
        order.append(tag)
        alive -= 1
    assert order == list(range(40))
    assert most <= 10


@pytest.mark.parametrize("mode", ["original", "zegclip_sliding_window", "sliding_window"])
def test_logits_of_the_windows_size_are_only_placed(mode):
    """The network itself makes the second resize; nothing is left to do for the host."""

    def apply(variables, images):
        logits = toy.apply(variables, images)
        return bilinear(logits, images.shape[1:3], align_corners=False)

    stride = 7 if mode in sliding_window.STRIDED else None
    scores = WindowScores(
        apply,
        num_classes=toy.CLASSES,
        crop=toy.CROP,
        patch_size=None,
        mode=mode,
        stride=stride,
        window_batch=3,
        devices=jax.devices()[:1],
        via_square=False,
    )
    variables = toy.make_variables()
    sizes = [(23, 37), (9, 30)]
    images = [toy.normalize(toy.make_example(i, size).image) for i, size in enumerate(sizes)]
    for image, found in zip(images, score_maps(scores, variables, images, sizes), strict=True):
        expected = toy.slow_scores(variables, image, image.shape[:2], mode=mode, stride=stride)
        assert_close(found, expected, 2e-6, f"{mode} {image.shape}")


def test_without_patch_padding_windows_keep_their_size():
    scores = build("zegclip_sliding_window", patch_size=None)
    seen = []
    scores._apply = lambda variables, images: (
        seen.append(images.shape),
        toy.apply(variables, images),
    )[1]
    images = [np.zeros((5, 7, 3), np.float32), np.zeros((6, 7, 3), np.float32)]
    list(score_maps(scores, toy.make_variables(), images, [(5, 7), (6, 7)]))
    assert [shape[1:3] for shape in seen] == [(5, 7), (6, 7)]


@pytest.mark.golden
@pytest.mark.slow
def test_published_score_maps_and_predictions():
    golden = Golden("eval_modes")
    modes = {(item["mode"], item["stride"]): [] for item in golden.meta["items"]}
    for item in golden.meta["items"]:
        modes[item["mode"], item["stride"]].append(item)
    for (mode, stride), items in modes.items():
        scores, variables = golden_scores(golden, mode, stride)
        images = [nhwc(golden[f"in/{item['input']}/img"])[0] for item in items]
        sizes = [
            image.shape[:2] if mode == "center_crop" else tuple(item["final_shape"][2:])
            for image, item in zip(images, items, strict=True)
        ]
        found = score_maps(scores, variables, images, sizes)
        for item, score in zip(items, found, strict=True):
            assert_published(golden, item["key"], score)


def golden_network(golden):
    """(network, its variables, sizes) of the file's model."""
    crop = golden.meta["crop_size"]
    renormalize = bool(golden.meta["build_cfg"]["model_args"].get("renorm_clip_img", False))
    model = golden_models.segmenter(golden, crop=crop, renormalize=renormalize)
    text = golden_models.class_text(golden["in/text_class"])
    options = {
        "num_classes": text.num_classes,
        "crop": crop,
        "patch_size": model.padding_patch,
    }
    variables = golden_models.variables(golden)
    return build_lib.window_network(model, text), variables, options


def golden_scores(golden, mode, stride):
    network, variables, options = golden_network(golden)
    scores = WindowScores(
        network, **options, mode=mode, stride=stride, window_batch=2, devices=jax.devices()[:1]
    )
    return scores, variables


def assert_published(golden, key, score):
    if f"out/{key}/final" in golden:
        assert_close(score, nhwc(golden[f"out/{key}/final"])[0], 1e-5, key)
    differs = score.argmax(-1) != golden[f"out/{key}/pred"][0]
    best = np.sort(score[differs], axis=-1)
    ties = best[..., -1] - best[..., -2] <= 1e-5 * np.abs(score).max()
    assert ties.all(), f"{key}: {(~ties).sum()} pixels differ"
