"""Lists of images: every line names an image, or is an error with its number."""

import pytest

from semivl_jax.data.id_lists import find_id, read_id_list

IDS = ("dog", "a/cat", "my dog", "v1.2", "unlabelled/x", "ulm_000_leaf", "pic.jpg")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("dog", "dog"),
        ("dog.JPG", "dog"),
        ("./dog.jpg", "dog"),
        ("images/train/dog.jpg", "dog"),
        ("/data/photos/images/train/a/cat.png", "a/cat"),
        (r"images\train\a\cat.png", "a/cat"),
        ("JPEGImages/dog.jpg SegmentationClass/dog.png", "dog"),
        ("images/my dog.jpg,masks/my dog.png", "my dog"),
        ("leftImg8bit/train/ulm/ulm_000_leaf_leftImg8bit.png gtFine/ulm_000_leaf_gt.png",
         "ulm_000_leaf"),
        ("v1.2", "v1.2"),
        ("v1.2.png", "v1.2"),
        ("pic.jpg", "pic.jpg"),
        ("/data/unlabelled/x.jpg", "unlabelled/x"),
        ("dog 2", None),
        ("dog,1", None),
        ("dog.2", None),
        ("dog.v2.jpg", None),
        ("v1", None),
        ("dog.jpg 2", None),
        ("dog.jpg cat.png", None),
        ("images/val/dog.jpg", None),
        ("other/dog.jpg", None),
        ("b/cat", None),
        ("cat", None),
        ("Dog", None),
        ("# dog", None),
    ],
)  # fmt: skip
def test_what_a_line_means(line, name):
    assert find_id(line, IDS) == name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dog\n\ndog 2\n", "line 3 names 'dog 2', which is no training image .*'dog'"),
        ("dog\nmy dog\ndog.jpg", "line 3 names 'dog' twice, as line 1 does"),
        ("\n", "names no image"),
    ],
)
def test_errors_have_the_line(tmp_path, text, sentence):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^key {sentence}"):
        read_id_list(path, IDS, key="key")
