"""Windows of every mode, and the matrices that carry their logits to the label."""

import itertools

import numpy as np
import pytest

from semivl_jax.evaluation import sliding_window
from semivl_jax.models.resize import resize_matrix
from tests.golden_files import Golden


def plan(mode, image, label, *, crop, stride):
    pixels = sliding_window.resolve_stride(mode, stride, crop=crop)
    return [
        sliding_window.axis(mode, *n, crop=crop, stride=pixels)
        for n in zip(image, label, strict=True)
    ]


@pytest.mark.golden
def test_model_calls_have_the_published_shapes_in_the_published_order():
    golden = Golden("eval_modes")
    for item in golden.meta["items"]:
        image = golden[f"in/{item['input']}/img"].shape[2:]
        label = item["final_shape"][2:]
        if item["mode"] == "center_crop":
            label = image
        rows, cols = plan(
            item["mode"], image, label, crop=golden.meta["crop_size"], stride=item["stride"]
        )
        windows = [[1, 3, r.window, c.window] for r in rows.spans for c in cols.spans]
        assert windows == item["model_calls"], item["key"]
        assert [rows.length, cols.length] == item["final_shape"][2:], item["key"]


@pytest.mark.parametrize("mode", sliding_window.MODES)
@pytest.mark.parametrize("length", [1, 7, 12, 13, 25, 40])
def test_constant_logits_give_the_constant_or_the_visits(mode, length):
    """Ones in every window: averaging modes give 1, summing modes the number of windows."""
    crop, stride = 12, 5 if mode in sliding_window.STRIDED else None
    pixels = sliding_window.resolve_stride(mode, stride, crop=crop)
    axis = sliding_window.axis(mode, length, length, crop=crop, stride=pixels)
    total = sum(weights @ np.ones(crop, np.float32) for weights in axis.weights)
    expected = np.ones(axis.length)
    if mode in sliding_window.SUMS_PROBABILITIES:
        starts = list(range(0, length, pixels))
        if (
            mode == "shifted_sliding_window"
        ):  # as many as it takes to reach the end, the last at the end
            needed = next(i for i, start in enumerate(starts) if start + crop >= length)
            starts = [*starts[:needed], max(length - crop, 0)]
        expected = [sum(s <= i < s + crop for s in starts) for i in range(length)]
    np.testing.assert_allclose(total, expected, rtol=1e-6)


@pytest.mark.parametrize(("length", "label"), [(40, 40), (29, 40), (40, 23), (12, 30)])
def test_logits_that_are_the_position_come_out_as_the_position(length, label):
    """Each window says where its pixels lie; the score must be the label pixel's place in the image."""
    crop = 12
    axis = sliding_window.axis("zegclip_sliding_window", length, label, crop=crop, stride=5)
    total = np.zeros(label)
    for span, weights in zip(axis.spans, axis.weights, strict=True):
        total += weights @ (span.start + np.arange(crop))
    np.testing.assert_allclose(total, np.linspace(0, length - 1, label), atol=1e-4)


def test_last_window_is_shifted_back_inside():
    spans = sliding_window.spans("zegclip_sliding_window", 29, crop=12, stride=5)
    assert [span.start for span in spans] == [0, 5, 10, 15, 17]
    assert {span.length for span in spans} == {12}
    # UniMatch V2 on Cityscapes: crop 798, step int(798 · 2 / 3), 1024 rows and 2048 columns.
    stride = sliding_window.resolve_stride("shifted_sliding_window", None, crop=798)
    starts = [
        [
            span.start
            for span in sliding_window.spans("shifted_sliding_window", n, crop=798, stride=stride)
        ]
        for n in (1024, 2048)
    ]
    assert starts == [[0, 226], [0, 532, 1064, 1250]]


def test_a_window_smaller_than_the_crop_is_resized_back_to_its_own_size():
    axis = sliding_window.axis("sliding_window", 21, 21, crop=12, stride=8)
    assert [(s.start, s.window) for s in axis.spans] == [(0, 12), (8, 12), (16, 5)]
    expected = resize_matrix(12, 5, method="bilinear", align_corners=False)
    np.testing.assert_array_equal(axis.weights[2][16:], expected)
    assert not axis.weights[2][:16].any()


def test_zero_padding_of_a_window_is_cut_off_and_not_resized_away():
    axis = sliding_window.axis("padded_sliding_window", 21, 21, crop=12, stride=8)
    assert [(s.start, s.length, s.window) for s in axis.spans] == [
        (0, 12, 12),
        (8, 12, 12),
        (16, 5, 12),
    ]
    np.testing.assert_array_equal(axis.weights[2][16:], np.eye(5, 12))


def test_tiles_are_the_rows_of_the_matrix_and_windows_elsewhere_have_none():
    weights = sliding_window.axis("sliding_window", 21, 21, crop=12, stride=8).weights[2]
    tiles = [sliding_window.tile_rows(weights, i, side=8) for i in range(3)]
    assert tiles[0] is None and tiles[1] is None
    assert tiles[2].shape == (8, 12)
    np.testing.assert_array_equal(tiles[2][:5], weights[16:])
    assert not tiles[2][5:].any()


def test_small_windows_of_one_patch_grid_share_a_shape():
    grids = {sliding_window.network_length(n, crop=30, patch=4) for n in range(17, 21)}
    assert grids == {20}
    assert sliding_window.network_length(30, crop=30, patch=4) == 30
    # 29 would round to 32, which is no less a grid of 8 than the full window's 30.
    assert sliding_window.network_length(29, crop=30, patch=4) == 30
    assert sliding_window.network_length(33, crop=30, patch=4) == 36
    assert sliding_window.network_length(17, crop=30, patch=None) == 17


def test_strides():
    assert sliding_window.resolve_stride("padded_sliding_window", 2 / 3, crop=801) == 534
    assert sliding_window.resolve_stride("sliding_window", None, crop=801) == 534
    assert sliding_window.resolve_stride("zegclip_sliding_window", 426.0, crop=512) == 426
    assert sliding_window.resolve_stride("original", 426.0, crop=512) is None
    for stride, mode in itertools.product([0, -3, 2.5, 13], sliding_window.STRIDED):
        with pytest.raises(ValueError, match=r"evaluation\.stride=.* choose whole pixels"):
            sliding_window.resolve_stride(mode, stride, crop=12)
    with pytest.raises(ValueError, match=r"needs evaluation\.stride"):
        sliding_window.resolve_stride("zegclip_sliding_window", None, crop=12)


@pytest.mark.parametrize("mode", ["sliding_window", "padded_sliding_window", "center_crop"])
def test_modes_that_score_image_pixels_reject_labels_of_another_size(mode):
    with pytest.raises(ValueError, match="give both the same size"):
        sliding_window.output_length(mode, 20, 21, crop=12)
