"""Published lists: pinned, fetched once, verified; and equal to the copies that some machines have."""

import hashlib
import json
from pathlib import Path

import pytest

from semivl_jax.data import published_splits, splits
from semivl_jax.data.published_splits import FOLDERS, LABELLED, VOC_PARTS, PublishedList
from semivl_jax.data.source import Source
from tests.data.file_server import serve

COPIES = Path(__file__).parents[2].parent / "shared" / "splits"
LISTS = [(d, f"{s}/labeled.txt", p) for d in LABELLED for s, p in LABELLED[d].items()]
LISTS += [("voc", path, p) for path, p in VOC_PARTS.items()]
copies = pytest.mark.skipif(not COPIES.is_dir(), reason="no copies of the lists beside the project")


@pytest.fixture
def server():
    with serve() as running:
        yield running


def pinned(data: bytes) -> PublishedList:
    return PublishedList(len(data.splitlines()), hashlib.sha256(data).hexdigest())


def source(ids, info) -> Source:
    facts = info.to_json() | {
        "ids": {"train": list(ids)}, "pixels": {"train": [{"0": 1}] * len(ids)}
    }  # fmt: skip
    return Source(Path("nowhere"), "train", json.loads(json.dumps(facts)))


@copies
@pytest.mark.parametrize(("dataset", "path", "published"), LISTS)
def test_pins_equal_the_copies(dataset, path, published):
    assert pinned((COPIES / FOLDERS[dataset] / path).read_bytes()) == published


@copies
@pytest.mark.parametrize("share", [8, 16, 32, 64, 128])
def test_computed_ade20k_lists_equal_the_copies(share):
    labelled = published_splits.read_ids(COPIES / "ade" / f"1_{share}" / "labeled.txt")
    train = [f"ADE_train_{number:08d}" for number in range(1, 20211)]
    assert tuple(splits.draw_ids(train, round(20210 / share), seed=0)) == labelled


@copies
def test_every_copied_list_resolves_whole_and_disjoint(toy_source, server, tmp_path):
    voc = published_splits.read_ids(COPIES / "pascal/train_aug.txt")
    city = [
        name
        for part in ("labeled", "unlabeled")
        for name in published_splits.read_ids(COPIES / f"cityscapes/1_8/{part}.txt")
    ]
    assert sorted(voc) == sorted(
        name for path in list(VOC_PARTS)[:2]
        for name in published_splits.read_ids(COPIES / "pascal" / path)
    )  # fmt: skip
    for dataset, ids in (("voc", voc), ("cityscapes", city)):
        train = source(ids, toy_source.info)
        for name, published in LABELLED[dataset].items():
            path = f"{FOLDERS[dataset]}/{name}/labeled.txt"
            server.files[path] = (COPIES / path).read_bytes()
            known = published_splits.labelled_ids(dataset, name, tmp_path, address=server.address)
            split = splits.resolve_split(train, name, published=known)
            assert len(split.labelled) == published.count
            assert len(split.labelled) + len(split.unlabelled) == len(ids)
            # The same file as a list of the user's means the same images.
            assert splits.resolve_split(train, str(COPIES / path)) == split
            rest = published_splits.read_ids((COPIES / path).with_name("unlabeled.txt"))
            assert {ids[index] for index in split.unlabelled} == set(rest)


def test_lists_are_fetched_once_and_verified(server, tmp_path, monkeypatch):
    data = b"leftImg8bit/train/a/a_1_leftImg8bit.png gtFine/x.png\nleftImg8bit/train/b/b_2.png y\n"
    server.files["cityscapes/1_30/labeled.txt"] = data
    monkeypatch.setitem(LABELLED["cityscapes"], "1_30", pinned(data))
    get = published_splits.labelled_ids
    for _ in range(2):
        assert get("cityscapes", "1_30", tmp_path, address=server.address) == ("a_1", "b_2")
    assert len(server.requests) == 1
    (tmp_path / "splits/cityscapes/1_30-labeled.txt").write_bytes(b"edited")
    with pytest.raises(ValueError, match=r"1_30-labeled\.txt is not the expected file"):
        get("cityscapes", "1_30", tmp_path, address=server.address)
    monkeypatch.setitem(LABELLED["cityscapes"], "1_30", PublishedList(2, "0" * 64))
    with pytest.raises(ValueError, match=r"is not the expected file: .* was removed"):
        get("cityscapes", "1_30", tmp_path / "new", address=server.address)


def test_other_names_have_no_list(tmp_path):
    for dataset, name in (("voc", "1_20"), ("ade20k", "1_8"), ("folder", "92"), ("coco", "92")):
        assert published_splits.labelled_ids(dataset, name, tmp_path) is None


def test_published_list_that_does_not_fit_the_data(toy_source):
    with pytest.raises(ValueError, match=r"split='92' names '2007_1' \(1 images in all\)"):
        splits.resolve_split(toy_source, "92", published=("train00", "2007_1"))
    with pytest.raises(ValueError, match="list every image once"):
        splits.resolve_split(toy_source, "92", published=("train00", "train00"))
    split = splits.resolve_split(toy_source, "92", published=("train02", "train00"))
    assert split.labelled == (2, 0)
    assert "labelled images: the published list '92'" in splits.describe_split(toy_source, split)
