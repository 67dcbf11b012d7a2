"""Data from which nothing right can be learnt is named before the first step."""

import copy
import re

import numpy as np
import pytest
from PIL import Image

from semivl_jax.data.check_data import check, describe_rare
from semivl_jax.data.source import open_source
from semivl_jax.data.splits import Split, resolve_split
from tests.data.photos import make_folder
from tfds_builders import common
from tfds_builders.folder_semi import FolderSemi


@pytest.fixture
def checked(tmp_path):
    """`checked(values of the training masks, of the validation mask, …)` → the notes."""

    def run(
        train, validation, *, label_map="n:255", classes="sky\nroad\ncar\n", split="2", change=None
    ):
        root = make_folder(tmp_path / "photos", masks=3, without=1, validation=1)
        (root / "classes.txt").write_text(classes)
        masks = sorted(root.glob("masks/*/*.png"))
        for path, values in zip(masks, (*train, validation), strict=True):
            size = np.asarray(Image.open(path)).shape
            Image.fromarray(np.resize(np.uint8(values), size)).save(path)
        if change:
            change(root)
        builder = FolderSemi(root, label_map=label_map, data_dir=tmp_path / "prepared")
        directory = common.prepare(builder)
        parts = [open_source(directory, part) for part in common.PARTS]
        return check(*parts, resolve_split(parts[0], split))

    return run


ALL = [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("train", "validation", "options", "sentence"),
    [
        ([[0, 255]] * 3, [0, 255], {}, "only the values 0 and 255, .* if white is 'road', set .*255:1"),
        ([[1, 2, 3]] * 3, [1, 2, 3], {},
         r"no mask has the value 0, .* the value 3 in \d+ pixels \(33.\d %\), .*\"1:0,2:1,3:2\""),
        ([[1]] * 3, [0, 1], {}, "the masks show the one class 'road'"),
        ([[0]] * 3, ALL, {"classes": "sky\n", "label_map": "1:255,2:255"}, "the one class 'sky'"),
        ([[255]] * 3, ALL, {}, "no labelled image has a pixel that counts"),
        ([ALL] * 3, [255], {}, "no validation image has a pixel that counts"),
    ],
)  # fmt: skip
def test_nothing_to_learn(checked, train, validation, options, sentence):
    with pytest.raises(ValueError, match=f"(?i){sentence}"):
        checked(train, validation, **options)


def test_remedies_of_the_messages(checked):
    assert checked([[0, 255]] * 3, [0, 255], label_map="255:1")
    assert checked([[1, 2, 3]] * 3, [1, 2, 3], label_map="1:0,2:1,3:2")
    assert checked([[1, 2, 3]] * 3, [1, 2, 3], label_map="3:255")


def test_nothing_to_say(checked):
    assert checked([ALL] * 3, [0, 1, 2]) == []


@pytest.mark.parametrize(
    ("train", "validation", "note"),
    [
        ([[0, 1, 2, 3]] * 3, ALL, r"^label map n:255: \d+ pixels \(\d+.\d\d % of the masks\)"),
        ([[1, 2]] * 3, [1, 2], "no mask has the value 0 .sky.; if the values count from 1"),
        ([[1], ALL, ALL], ALL, "the labelled images show only road; label others"),
        ([ALL] * 3, [0, 1], "never in validation, so 0 in the mean IoU .*: car$"),
    ],
)
def test_notes(checked, train, validation, note):
    notes = checked(train, validation, split="1" if train[0] == [1] else "2")
    assert any(re.search(note, line) for line in notes), notes


def test_rare_classes(toy_source):
    source = copy.copy(toy_source)
    source.pixels = tuple({0: 500, 1: 496, 2: count, 255: 10**6} for count in (4, 30, 30))
    assert describe_rare(source, Split((0, 1), (2,), "")) == []
    (line,) = describe_rare(source, Split((0,), (1, 2), ""))
    assert line.startswith(f"below 1% of the labelled pixels: {source.info.classes[2]}; --config")


def _turn_and_deepen(root):
    photo, *others = sorted(root.glob("images/*/*.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.asarray(Image.open(photo))).save(photo, exif=exif)
    for path in others[:2]:
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        path.unlink()
        Image.fromarray(grey).save(path.with_suffix(".png"))


def test_photos_that_are_changed_are_counted(checked):
    notes = checked([ALL] * 3, ALL, change=_turn_and_deepen)
    assert notes == [
        "2 photos use 12 bits per sample; they are scaled to 8 bits from that range",
        "1 photos are turned upright by their EXIF data; their masks must be upright, too",
    ]
