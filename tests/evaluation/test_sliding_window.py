"""Windows of every mode, the matrices that carry their logits to the label, and what options are refused."""

import numpy as np
import pytest

from semivl_jax.evaluation import sliding_window
from semivl_jax.evaluation.sliding_window import SlidingWindow, tile_rows
from semivl_jax.models.resize import resize_matrix
from tests.golden_files import Golden


def window(mode, *, crop=12, stride=5, **options):
    return SlidingWindow(mode=mode, crop=crop, stride=stride, **options)


@pytest.mark.golden
def test_model_calls_have_the_published_shapes_in_the_published_order():
    golden = Golden("eval_modes")
    for item in golden.meta["items"]:
        image = golden[f"in/{item['input']}/img"].shape[2:]
        options = window(item["mode"], crop=golden.meta["crop_size"], stride=item["stride"])
        size = tuple(item["final_shape"][2:])
        label = size if options.resizes_scores else image
        assert options.output_size(image, label) == size, item["key"]
        rows, columns = (options.spans(length) for length in image)
        windows = [[1, 3, r.window, c.window] for r in rows for c in columns]
        assert windows == item["model_calls"], item["key"]


@pytest.mark.parametrize("mode", sliding_window.MODES)
@pytest.mark.parametrize("length", [1, 7, 12, 13, 25, 40])
def test_constant_logits_give_the_constant_or_the_visits(mode, length):
    """Ones in every window: averaging modes give 1, summing modes the number of windows."""
    options = window(mode)
    (output, _) = options.output_size((length, length), (length, length))
    axis = options.axis(length, output)
    total = sum(weights @ np.ones(12, np.float32) for weights in axis.weights)
    expected = np.ones(output)
    if options.sums_probabilities:
        starts = list(range(0, length, options.pixel_stride))
        if mode == "shifted_sliding_window":
            # As many as it takes to reach the end, the last one at the end.
            needed = next(i for i, start in enumerate(starts) if start + 12 >= length)
            starts = [*starts[:needed], max(length - 12, 0)]
        expected = [sum(s <= i < s + 12 for s in starts) for i in range(length)]
    np.testing.assert_allclose(total, expected, rtol=1e-6)


@pytest.mark.parametrize(("length", "label"), [(40, 40), (29, 40), (40, 23), (12, 30)])
def test_logits_that_are_the_position_come_out_as_the_position(length, label):
    """Each window says where its pixels lie; the score must be the label pixel's place in the image."""
    axis = window("zegclip_sliding_window").axis(length, label)
    total = np.zeros(label)
    for span, weights in zip(axis.spans, axis.weights, strict=True):
        total += weights @ (span.start + np.arange(12))
    np.testing.assert_allclose(total, np.linspace(0, length - 1, label), atol=1e-4)


def test_last_window_is_shifted_back_inside():
    spans = window("zegclip_sliding_window").spans(29)
    assert [span.start for span in spans] == [0, 5, 10, 15, 17]
    assert {span.length for span in spans} == {12}
    # UniMatch V2 on Cityscapes: crop 798, step int(798 · 2 / 3), 1024 rows and 2048 columns.
    published = window("shifted_sliding_window", crop=798)
    starts = [[span.start for span in published.spans(n)] for n in (1024, 2048)]
    assert starts == [[0, 226], [0, 532, 1064, 1250]]


def test_a_window_smaller_than_the_crop_is_resized_back_to_its_own_size():
    axis = window("sliding_window").axis(21, 21)
    assert [(s.start, s.window) for s in axis.spans] == [(0, 12), (8, 12), (16, 5)]
    expected = resize_matrix(12, 5, method="bilinear", align_corners=False)
    np.testing.assert_array_equal(axis.weights[2][16:], expected)
    assert not axis.weights[2][:16].any()


def test_zero_padding_of_a_window_is_cut_off_and_not_resized_away():
    axis = window("padded_sliding_window", stride=8).axis(21, 21)
    assert axis.spans == ((0, 12, 12), (8, 12, 12), (16, 5, 12))
    np.testing.assert_array_equal(axis.weights[2][16:], np.eye(5, 12))


def test_tiles_are_the_rows_of_the_matrix_and_windows_elsewhere_have_none():
    weights = window("sliding_window").axis(21, 21).weights[2]
    tiles = [tile_rows(weights, i, side=8) for i in range(3)]
    assert tiles[0] is None and tiles[1] is None
    assert tiles[2].shape == (8, 12)
    np.testing.assert_array_equal(tiles[2][:5], weights[16:])
    assert not tiles[2][5:].any()


def test_small_windows_of_one_patch_grid_share_a_shape():
    patches = window("original", crop=30, patch_size=4)
    assert {patches.network_length(n) for n in range(17, 21)} == {20}
    assert patches.network_length(30) == 30
    # 29 would round to 32, which is no less a grid of 8 than the full window's 30.
    assert patches.network_length(29) == 30
    assert patches.network_length(33) == 36
    assert window("original", crop=30).network_length(17) == 17


@pytest.mark.parametrize(
    ("mode", "stride", "pixels"),
    [
        ("padded_sliding_window", 2 / 3, 534),
        ("sliding_window", None, 534),
        ("zegclip_sliding_window", 426.0, 426),
        ("original", 426.0, None),
    ],
)
def test_strides(mode, stride, pixels):
    assert window(mode, crop=801, stride=stride).pixel_stride == pixels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sliding"}, r"evaluation\.mode = 'sliding' is unknown; choose one of zegclip"),
        ({"window_batch": 0}, r"evaluation\.window_batch = 0 must be 1 or more"),
        (
            {"mode": "sliding_window", "short_side": 9},
            r"evaluation\.short_side = 9 resizes it; set",
        ),
        ({"stride": None}, r"needs evaluation\.stride"),
        ({"stride": 13}, r"evaluation\.stride = 13 is larger than data\.crop = 12"),
        ({"stride": 0}, r"evaluation\.stride = 0; choose whole pixels from 1"),
        ({"stride": -3}, r"evaluation\.stride = -3; choose whole pixels from 1"),
        ({"mode": "padded_sliding_window", "stride": 2.5}, r"evaluation\.stride = 2\.5; choose"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        window(**{"mode": "zegclip_sliding_window", **options})


@pytest.mark.parametrize("mode", ["sliding_window", "padded_sliding_window", "center_crop"])
def test_modes_that_score_image_pixels_reject_labels_of_another_size(mode):
    with pytest.raises(ValueError, match="give both the same size"):
        window(mode).output_size((20, 20), (20, 21))


def test_prediction_bounds_what_the_network_sees():
    whole = window("original", least_side=4, window_batch=8).for_prediction()
    assert whole.window_batch == 1
    assert whole.prepare(np.zeros((600, 300, 3), np.uint8)).shape == (33, 16, 3)
    # Nothing is enlarged beyond 2²⁵ pixels, however thin it is.
    thin = window("zegclip_sliding_window", short_side=512).prepare(np.zeros((1, 900, 3), np.uint8))
    assert thin.shape[0] * thin.shape[1] <= 1 << 25
