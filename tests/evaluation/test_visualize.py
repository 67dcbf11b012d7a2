"""Colours, overlays and panels, looked at through their pixels."""

import numpy as np
import pytest

from semivl_jax.evaluation import visualize

PALETTE = np.array([[200, 30, 30], [30, 200, 30], [255, 255, 255]], np.uint8)
NAMES = ("ball", "traffic light", "snow")


def test_colours_are_the_palette_and_ignored_pixels_look_like_no_class():
    label = np.array([[0, 1], [2, 1]]).repeat(20, 0).repeat(20, 1)
    label[:10, :10] = 255
    picture = visualize.colorize(label, PALETTE)
    np.testing.assert_array_equal(picture[label != 255], PALETTE[label[label != 255]])
    assert {tuple(c) for c in picture[:10, :10].reshape(-1, 3).tolist()} == set(visualize.VOID)
    with pytest.raises(ValueError, match="label value 3 has no colour"):
        visualize.colorize(np.full((2, 2), 3), PALETTE)


def test_overlay_tints_keeps_ignored_pixels_and_draws_borders():
    image = np.full((12, 12, 3), 100, np.uint8)
    label = np.zeros((12, 12), np.uint8)
    label[:, 6:], label[8:] = 1, 255
    picture = visualize.overlay(image, label, PALETTE)
    np.testing.assert_array_equal(picture[8:], image[8:])
    mixed = visualize.TINT * PALETTE[0] + (1 - visualize.TINT) * image[2, 2]
    np.testing.assert_allclose(picture[2, 2], mixed, atol=0.5 + 1e-6)  # rounded
    np.testing.assert_array_equal(picture[2, 5], PALETTE[0])


@pytest.mark.parametrize("size", [(5, 9), (64, 64), (375, 500), (1024, 2048)])
def test_panels_hold_every_column_at_one_height(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    label = np.zeros((48, max(1, round(48 * size[1] / size[0]))), np.uint8)
    sheet = visualize.panels([(image, {"guidance": label})], classes=NAMES, palette=PALETTE)
    assert sheet.dtype == np.uint8
    longer = max(size)
    expected = size[0] * (-(-240 // longer) if longer < 240 else min(1, 480 / longer))
    height = (sheet == PALETTE[0]).all(-1).sum(0).max()
    assert abs(height - expected) <= 1 + visualize.SWATCH
    assert sheet.shape[0] >= expected and sheet.shape[1] >= 2 * expected * size[1] / size[0]


def test_small_label_maps_are_magnified_without_new_colours():
    label = np.arange(64).reshape(8, 8) % 3
    picture = visualize.colorize(label, PALETTE)
    sheet = visualize.panels([(picture, {"truth": label})], classes=NAMES, palette=PALETTE)
    top, left = visualize.MARGIN + visualize.TITLE, visualize.MARGIN
    for column in (left, left + 240 + visualize.GAP):
        found = sheet[top : top + 240, column : column + 240]
        np.testing.assert_array_equal(found, picture.repeat(30, 0).repeat(30, 1))


def test_legends_of_many_classes_name_those_that_occur():
    palette = np.zeros((90, 3), np.uint8)
    names = [f"class {i}" for i in range(90)]
    label = np.full((30, 30), 7)

    def entries(*labels, all_of=False):
        return [name for name, _ in visualize._entries(labels, names, palette, all_of=all_of)]

    assert entries(label) == ["class 7"]
    other = label.copy()
    other[0, 0], other[1] = 80, 255
    assert entries(label, other) == ["class 7", "class 80", "ignored"]
    assert entries(label, all_of=True) == names


def test_a_long_legend_wraps_inside_the_sheet():
    names = [f"a rather long class name {i}" for i in range(20)]
    palette = np.linspace(0, 250, 60).reshape(20, 3).astype(np.uint8)
    image, label = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), int)
    sheet = visualize.panels([(image, {"truth": label})], classes=names, palette=palette)
    assert (sheet[:, -10:] == 255).all()
    assert sheet.shape[0] > 240 + 5 * visualize.ROW
    with pytest.raises(ValueError, match="20 colours for 3 classes"):
        visualize.panels([(image, {})], classes=NAMES, palette=palette)


def test_the_legend_below_a_picture_names_what_occurs_and_leaves_the_picture_alone():
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    label = np.full((50, 60), 1)
    label[:5] = 255
    sheet = visualize.captioned(picture, label, classes=NAMES, palette=PALETTE)
    np.testing.assert_array_equal(sheet[:200:4, :240:4], picture)
    np.testing.assert_array_equal(sheet[3:200:4, 3:240:4], picture)
    below = {tuple(c) for c in sheet[200:].reshape(-1, 3).tolist()}
    assert tuple(PALETTE[1]) in below and tuple(PALETTE[0]) not in below
    wide = visualize.captioned(
        picture.repeat(20, 1), label.repeat(20, 1), classes=NAMES, palette=PALETTE
    )
    assert wide.shape[1] == 60 * 20
