"""Published lists: pinned, fetched once, verified, and resolved."""

import hashlib

import pytest

from semivl_jax.data import published_splits, splits
from semivl_jax.data.published_splits import LISTS, VOC_PARTS, PublishedList
from tests.data.file_server import serve

KEY = ("cityscapes", "1_30/labeled.txt")
DATA = b"leftImg8bit/train/a/a_1_leftImg8bit.png gtFine/x.png\nleftImg8bit/train/b/b_2.png y\n"


def test_the_lists_of_each_data_set():
    """Numbers of images as in the published tables."""
    counts = {
        "voc": [92, 183, 366, 732, 1464],
        "coco": [232, 463, 925, 1849, 3697],
        "cityscapes": [100, 186, 372, 744, 1488],
        "ade20k": [],
        "folder": [],
    }
    for dataset, numbers in counts.items():
        lists = published_splits.lists_of(dataset)
        assert [published.count for published in lists.values()] == numbers
    assert published_splits.lists_of("coco_instances") == published_splits.lists_of("coco")
    sizes = {
        part: sum(LISTS["voc", path].count for path in paths) for part, paths in VOC_PARTS.items()
    }
    assert sizes == {"train": 10_582, "validation": 1_449}
    assert len({published.sha256 for published in LISTS.values()}) == len(LISTS)


def test_lists_are_fetched_once_and_verified(tmp_path, monkeypatch):
    pinned = PublishedList(2, hashlib.sha256(DATA).hexdigest())
    monkeypatch.setitem(LISTS, KEY, pinned)
    get = published_splits.labelled_ids
    with serve() as server:
        monkeypatch.setattr(published_splits, "ADDRESS", server.address)
        server.files["cityscapes/1_30/labeled.txt"] = DATA
        for _ in range(2):
            assert get("cityscapes", "1_30", tmp_path) == ("a_1", "b_2")
        assert len(server.requests) == 1
        (tmp_path / "splits/cityscapes/1_30-labeled.txt").write_bytes(b"edited")
        with pytest.raises(ValueError, match=r"1_30-labeled\.txt is not the expected file"):
            get("cityscapes", "1_30", tmp_path)
        monkeypatch.setitem(LISTS, KEY, PublishedList(2, "0" * 64))
        with pytest.raises(ValueError, match="is not the expected file"):
            get("cityscapes", "1_30", tmp_path / "other")
    for dataset, name in (("voc", "1_20"), ("ade20k", "1_8"), ("folder", "92"), ("coco", "92")):
        assert get(dataset, name, tmp_path) is None


def test_a_list_file_of_the_published_form_means_the_same_images(toy_source, tmp_path):
    path = tmp_path / "labeled.txt"
    path.write_text("images/train02.jpg masks/train02.png\ntrain/train00.jpg masks/train00.png\n")
    published = published_splits.read_ids(path)
    split = splits.resolve_split(toy_source, "92", published=published)
    assert split.labelled == (2, 0) and split.unlabelled == (1, *range(3, 13))
    assert splits.resolve_split(toy_source, str(path)) == split
    assert "labelled images: the published list '92'" in splits.describe_split(toy_source, split)


def test_published_list_that_does_not_fit_the_data(toy_source):
    with pytest.raises(ValueError, match=r"split='92' names '2007_1' \(1 images in all"):
        splits.resolve_split(toy_source, "92", published=("train00", "2007_1"))
