"""Batched windows and tiles give what a loop over windows gives; and the published score maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.evaluation import sliding_window, window_scores
from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.evaluation.window_scores import WindowScores
from semivl_jax.models import build, image_normalization
from semivl_jax.models.resize import bilinear
from tests import golden_models
from tests.evaluation import toy
from tests.golden_files import Golden, assert_close, nhwc


def score_maps(scores, variables, images, sizes):
    requests = [(image, size, None) for image, size in zip(images, sizes, strict=True)]
    found = None
    for block in scores(variables, iter(requests)):
        part = block.gather(jax.device_get(block.tiles))
        found = np.empty((*block.size, part.shape[-1]), np.float32) if found is None else found
        found[block.place] = part
        if block.last:
            yield found
            found = None


def toy_scores(mode="zegclip_sliding_window", *, devices=1, apply=toy.apply, **changes):
    window = toy.window(mode, **{"stride": 7, "window_batch": 3, **changes})
    devices = jax.devices()[:devices]
    return WindowScores(apply, window, num_classes=toy.CLASSES, devices=devices)


def toy_images(sizes=toy.SIZES):
    return [toy.make_example(i, size).image for i, size in enumerate(sizes)]


FOUR_TILES = 4 * 16 * 16 * 4 * toy.CLASSES


@pytest.mark.parametrize(
    ("devices", "window_batch", "blocks"), [(1, 3, 1 << 30), (8, 64, 1), (1, 1, FOUR_TILES)]
)
@pytest.mark.parametrize("mode", sliding_window.MODES)
def test_every_mode_and_size_equals_the_loop_over_windows(
    mode, devices, window_batch, blocks, monkeypatch
):
    """On one device and several, ragged batches, in one block and in blocks of one or four tiles."""
    monkeypatch.setattr(window_scores, "BLOCK_BYTES", blocks)
    variables = toy.make_variables()
    scores = toy_scores(mode, devices=devices, window_batch=window_batch)
    sizes = toy.SIZES
    if mode in sliding_window.RESIZES_SCORES:
        sizes = [size if i % 2 else (size[0] + 9, size[1] - 2) for i, size in enumerate(sizes)]
    elif mode == "center_crop":
        sizes = [tuple(min(n, toy.CROP) for n in size) for size in sizes]
    found = score_maps(scores, variables, toy_images(), sizes)
    for image, size, score in zip(toy_images(), sizes, found, strict=True):
        expected = toy.slow_scores(variables, toy.normalize(image), size, mode=mode, stride=7)
        assert_close(score, expected, 3e-6, f"{mode} {image.shape} → {size}")


def test_images_come_back_in_order_and_few_tiles_are_alive():
    """The number of images that wait for a full batch is bounded."""
    scores = toy_scores(window_batch=2)
    alive, most = 0, 0

    def requests():
        nonlocal alive, most
        for i in range(40):
            alive, most = alive + 1, max(most, alive + 1)
            # Every tenth image is smaller than the window: its batch never fills.
            h = 6 if i % 10 == 0 else 16
            yield np.zeros((h, 16, 3), np.uint8), (16, 16), i

    order = []
    for block in scores(toy.make_variables(), requests()):
        order.append(block.tag)
        alive -= 1
    assert order == list(range(40))
    assert most <= 10


@pytest.mark.parametrize("mode", ["original", "zegclip_sliding_window", "sliding_window"])
def test_logits_of_the_windows_size_are_only_placed(mode):
    """The network itself does the second resize."""

    def apply(variables, images):
        logits = toy.apply(variables, images)
        return bilinear(logits, images.shape[1:3], align_corners=False)

    scores = toy_scores(mode, apply=apply, patch_size=None, via_square=False)
    variables, images = toy.make_variables(), toy_images([(23, 37), (9, 30)])
    found = score_maps(scores, variables, images, [image.shape[:2] for image in images])
    for image, score in zip(images, found, strict=True):
        normal, size = toy.normalize(image), image.shape[:2]
        expected = toy.slow_scores(variables, normal, size, mode=mode, stride=7)
        assert_close(score, expected, 2e-6, f"{mode} {image.shape}")


def test_without_patch_padding_windows_keep_their_size():
    seen = []

    def apply(variables, images):
        seen.append(images.shape[1:3])
        return toy.apply(variables, images)

    scores = toy_scores(apply=apply, patch_size=None)
    images = [np.zeros((5, 7, 3), np.uint8), np.zeros((6, 7, 3), np.uint8)]
    list(score_maps(scores, toy.make_variables(), images, [(5, 7), (6, 7)]))
    assert seen == [(5, 7), (6, 7)]


def test_host_and_device_normalise_alike():
    (image,) = toy_images([(9, 11)])
    np.testing.assert_allclose(
        window_scores.normalize(image), image_normalization.normalize(jnp.asarray(image)), atol=1e-6
    )


@pytest.mark.golden
@pytest.mark.slow
def test_published_score_maps_and_predictions():
    golden = Golden("eval_modes")
    crop = golden.meta["crop_size"]
    renormalize = bool(golden.meta["build_cfg"]["model_args"].get("renorm_clip_img", False))
    model = golden_models.segmenter(golden, crop=crop, renormalize=renormalize)
    text = golden_models.class_text(golden["in/text_class"])
    network = build.window_network(model, text)
    variables = golden_models.imported(golden, golden.weights())
    by_window = {}
    for item in golden.meta["items"]:
        options = {"mode": item["mode"], "crop": crop, "stride": item["stride"], "window_batch": 2}
        window = SlidingWindow(**options, patch_size=model.padding_patch)
        by_window.setdefault(window, []).append(item)
    for window, items in by_window.items():
        scores = WindowScores(
            network, window, num_classes=text.num_classes, devices=jax.devices()[:1]
        )
        images = [nhwc(golden[f"in/{item['input']}/img"])[0] for item in items]
        sizes = [tuple(item["final_shape"][2:]) for item in items]
        found = score_maps(scores, variables, images, sizes)
        for item, score in zip(items, found, strict=True):
            key = item["key"]
            if f"out/{key}/final" in golden:
                assert_close(score, nhwc(golden[f"out/{key}/final"])[0], 1e-5, key)
            differs = score.argmax(-1) != golden[f"out/{key}/pred"][0]
            best = np.sort(score[differs], axis=-1)
            ties = best[..., -1] - best[..., -2] <= 1e-5 * np.abs(score).max()
            assert ties.all(), f"{key}: {(~ties).sum()} pixels differ"
