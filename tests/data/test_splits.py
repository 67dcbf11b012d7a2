import copy
import hashlib

import pytest

from semivl_jax.data.splits import describe_split, draw_ids, resolve_split
from tests.data.photos import make_folder, prepared

# SHA-256 of the published labelled ids of ADE20K, one per line.
ADE_SHARES = {
    8: "b15c2b59bd871fc0299b4f5cbb7b8f25140432bcea7b1963181fedf8e3038b38",
    16: "eed5585662ed4ad7d9e528688993dd7cbb30c10b8f503e2b398cd2ca83f757fd",
    32: "3382871d92b78da3c601cc6b02ba5372dceb72f0a3cbf3516306c7b24ebba619",
    64: "1196286178b5673b1b86b9dc721ebedc4e7e35ddaf1548d257b20674b9863251",
    128: "5d7006c9fa810da37e361a1da6bcc09faf7eb3609c65494bf5852000493c57e8",
}


@pytest.mark.parametrize("share", ADE_SHARES)
def test_draws_the_published_ade20k_lists(share):
    ids = [f"ADE_train_{number:08d}" for number in range(1, 20211)]
    chosen = draw_ids(ids[::-1], round(20210 / share), seed=0)
    assert hashlib.sha256("\n".join(chosen).encode()).hexdigest() == ADE_SHARES[share]


@pytest.mark.parametrize(
    ("text", "count"), [("1_2", 3), ("1_6", 1), ("4", 4), ("all", 6), ("auto", 6)]
)
def test_share_number_and_all_count_images_with_masks(toy_source, text, count):
    split = resolve_split(toy_source, text)
    assert len(split.labelled) == count
    assert all(toy_source.pixels[index] is not None for index in split.labelled)
    assert sorted(split.labelled + split.unlabelled) == list(range(len(toy_source)))


def test_auto_leaves_unlabelled_images_where_every_image_has_a_mask(toy_source):
    everywhere = copy.copy(toy_source)
    everywhere.pixels = tuple(counts or {0: 1} for counts in toy_source.pixels)
    assert len(resolve_split(everywhere, "auto").labelled) == round(len(everywhere) / 8)


def test_seed_changes_the_draw_only_when_it_changes(toy_source):
    assert resolve_split(toy_source, "3", seed=5) == resolve_split(toy_source, "3", seed=5)
    assert len({resolve_split(toy_source, "3", seed=seed) for seed in range(9)}) > 1


def test_lists(toy_source, tmp_path):
    labelled, unlabelled = tmp_path / "labelled.txt", tmp_path / "unlabelled.txt"
    labelled.write_text("train02\nimages/train/train00.jpg\n")
    unlabelled.write_text("train11\n\ntrain01.jpg\n")
    split = resolve_split(toy_source, str(labelled), unlabelled=str(unlabelled))
    assert (split.labelled, split.unlabelled) == ((2, 0), (11, 1))
    assert resolve_split(toy_source, str(labelled)).unlabelled == (1, *range(3, 13))


@pytest.mark.parametrize(
    ("lines", "other", "sentence"),
    [
        ("train99\n", "", "line 1 names 'train99', which is no training image"),
        ("train12\n", "", "names 'train12', which has no mask; add the mask"),
        ("train01\ntrain01\n", "", "names 'train01' twice"),
        ("\n", "", "names no image; write one id per line"),
        ("train01\n", "train02\ntrain01\n", "both name 'train01' .1 images in all"),
    ],
)
def test_bad_lists(toy_source, tmp_path, lines, other, sentence):
    labelled, unlabelled = tmp_path / "labelled.txt", tmp_path / "unlabelled.txt"
    labelled.write_text(lines)
    unlabelled.write_text(other)
    with pytest.raises(ValueError, match=sentence):
        resolve_split(toy_source, str(labelled), unlabelled=str(unlabelled) if other else "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1_0", "means 0 labelled images, but 6 images have a label"),
        ("7", "means 7 labelled images"),
        ("1/8", "is neither a share such as '1_8'"),
        ("a" * 300, "is neither a share such as '1_8'"),
        ("lists/none.txt", "nor an existing file of ids"),
    ],
)
def test_bad_descriptions(toy_source, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve_split(toy_source, text)


def test_missing_unlabelled_list(toy_source):
    with pytest.raises(ValueError, match=r"config.data.unlabelled='none.txt' is no file"):
        resolve_split(toy_source, "all", unlabelled="none.txt")


def test_nothing_left_unlabelled(tmp_path):
    source = prepared(make_folder(tmp_path / "photos", masks=2, without=0, validation=1))
    with pytest.raises(ValueError, match="leaves no unlabelled image; label fewer"):
        resolve_split(source, "all")
    assert resolve_split(source, "all", supervised=True).unlabelled == ()


def test_report_names_classes_never_labelled(toy_source):
    text = describe_split(toy_source, resolve_split(toy_source, "2"))
    assert "13 training images, 2 labelled, 11 unlabelled" in text
    assert "12 sizes of image, 30 to 44 pixels wide and 24 to 39 high" in text
    assert "never labelled" in text and text.endswith("car")
