"""One rule for photos in training and prediction."""

import errno
import os

import pytest

from semivl_jax.data.find_images import describe_left_out, images_in
from semivl_jax.inference import files
from tests.data.photos import make_folder
from tfds_builders.folder_semi.scan import scan


@pytest.fixture
def photos(tmp_path):
    """The names are what counts: nothing is decoded."""
    folder = tmp_path / "photos"
    names = ["a.gif", "b.JFIF", "c.ppm", "d.jp2", "sub/e.tif", "f.jpg"]
    tools = [".hidden.jpg", "._f.jpg", ".git/x.png", "__MACOSX/f.jpg", "@eaDir/f.jpg", "Thumbs.db"]
    others = ["g.heic", "h.heic", "notes.txt", "sub/README"]
    for name in (*names, *tools, *others):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.png").touch()
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(folder)
    return folder, sorted([*names, "link/linked.png"])


def test_links_formats_and_what_is_left_out(photos):
    folder, names = photos
    found = images_in(folder)
    assert [path.relative_to(folder).as_posix() for path in found.files] == names
    assert describe_left_out(found.left_out) == (
        "4 other files are left out: 2 .heic, 1 .txt, 1 no suffix"
    )
    assert describe_left_out(images_in(folder / "link").left_out).startswith("4 other files")
    (folder / "gone.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"gone.png is a link to a file that is not there"):
        images_in(folder)


def test_training_and_prediction_find_the_same(photos, tmp_path):
    folder, names = photos
    root = make_folder(tmp_path / "root", masks=1, without=0, validation=1)
    (root / "images/train/more").symlink_to(folder)
    scanned = scan(root)
    trained = [f.image.relative_to(root / "images/train/more") for f in scanned.train[:-1]]
    predicted, left_out = files.find_images([str(folder)], without=tmp_path / "out")
    assert sorted(map(str, trained)) == names
    assert [image.path.relative_to(folder).as_posix() for image in predicted] == names
    assert scanned.left_out == left_out
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/a.heic").touch()
    with pytest.raises(ValueError, match=r"finds no image \(1 other files are left out: 1 .heic"):
        files.find_images([str(tmp_path / "phone")], without=tmp_path / "out")


def test_a_folder_that_may_not_be_read_is_an_error(photos, monkeypatch):
    folder, _ = photos
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) != str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="Permission denied; make the folder readable"):
        images_in(folder)


def test_photos_beside_train_and_val_are_counted(tmp_path):
    root = make_folder(tmp_path / "root", masks=1, without=0, validation=1)
    (root / "images/test").mkdir()
    (root / "images/test/x.jpg").touch()
    assert scan(root).left_out == {"images beside images/train": 1}
