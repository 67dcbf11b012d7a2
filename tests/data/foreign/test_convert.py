"""`prepare folder`: data of other tools become a folder that trains, with nothing lost or guessed unsaid."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from semivl_jax import prepare
from semivl_jax.data.label_files import decode_label
from tests.data.foreign.exports import (
    LABEL,
    cityscapes,
    coco,
    cvat_masks,
    cvat_xml,
    labelme,
    mask,
    pairs,
    photo,
    voc,
)
from tests.data.photos import prepared
from tfds_builders.folder_semi.scan import scan


def stored(out, name):
    return decode_label((out / "masks" / f"{name}.png").read_bytes())


FOLDERS = {  # what makes it, the folder of the names, what the report says of it
    "voc": (voc, "", ["read as voc", "classes: ", "class_names.txt", "3 segmentationobject"]),
    "cvat masks": (cvat_masks, "", ["read as cvat", "labelmap.txt with colours"]),
    "cityscapes": (cityscapes, "ulm/",
                   ["read as masks", "3 _gtFine_labelIds", "neither: 3 _gtFine_color"]),
    "pairs": (pairs, "", []),
    "coco": (coco, "", ["read as coco", "instances_train2017.json, annotations/instances_val2017.json"]),
    "labelme": (labelme, "",
                ["classes: labels in alphabetical order", "without an area: 3 line"]),
    "cvat xml": (cvat_xml, "", ["read as cvat", "without an area: 3 polyline"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_tool_gives_the_same_folder(convert, tmp_path, kind):
    make, before, said = FOLDERS[kind]
    (tmp_path / "src").mkdir()
    make(tmp_path / "src")
    code, printed, out = convert()
    assert code == 0, printed
    folder = scan(out)
    assert folder.about.classes == ("background", "car", "dog")
    masks = {found.id: found.mask is not None for found in folder.train}
    expected = {f"{before}{name}": True for name in "ab"} | {f"{before}d": False}
    assert masks == expected
    assert [found.id for found in folder.validation] == [f"{before}c"]
    for name in ("train/{}a", "train/{}b", "val/{}c"):
        np.testing.assert_array_equal(stored(out, name.format(before)), LABEL)
    assert f"{len(expected)} training photos, 2 of them with a mask, 1 validation photos" in printed
    said = [*said, f"train with --config=configs/folder.py:{out}"]
    assert all(text in printed for text in said), printed
    if kind == "voc":
        assert prepared(out).info.classes == ("background", "car", "dog")


def test_colours_by_hexadecimal_and_a_drawn_validation_part(convert, tmp_path):
    for name in "abcde":
        photo(tmp_path / f"src/images/{name}.jpg")
        mask(tmp_path / f"src/masks/{name}.png", colour=True)
    (tmp_path / "src/classes.txt").write_text("sky #000000\ncar: auto, van #800000\ndog #008000\n")
    code, printed, out = convert("--from=colours", "--validation=0.4")
    assert code == 0 and "validation: 2 of 5 labelled photos, drawn with seed 0" in printed
    assert (out / "classes.txt").read_text() == "sky\ncar: auto, van\ndog\n"
    assert len(scan(out).validation) == 2


def test_what_lies_outside_may_be_ignored(convert, tmp_path):
    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    _, _, out = convert("--rest=ignore")
    assert scan(out).about.classes == ("car", "dog")
    expected = np.array([255, 0, 1], np.uint8)[LABEL]
    np.testing.assert_array_equal(stored(out, "train/a"), expected)


def test_a_class_list_orders_the_labels_and_ignored_ones_are_void(convert, tmp_path):
    (tmp_path / "src").mkdir()
    labelme(tmp_path / "src")
    path = tmp_path / "src/train/b.json"
    facts = json.loads(path.read_text())
    facts["shapes"][0]["label"] = "__ignore__"
    path.write_text(json.dumps(facts))
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\ncar\n")
    _, printed, out = convert(f"--classes={tmp_path / 'labels.txt'}")
    assert scan(out).about.classes == ("background", "dog", "car"), printed
    np.testing.assert_array_equal(stored(out, "train/a"), np.array([0, 2, 1], np.uint8)[LABEL])
    np.testing.assert_array_equal(stored(out, "train/b"), np.array([0, 255, 1], np.uint8)[LABEL])


def test_annotations_of_the_stored_pixels_are_turned_with_the_photo(convert, tmp_path):
    (tmp_path / "src").mkdir()
    voc(tmp_path / "src")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "src/JPEGImages/a.jpg", exif=exif)
    _, printed, out = convert()
    assert "1 masks were turned like their photos by the photos' EXIF data" in printed
    np.testing.assert_array_equal(stored(out, "train/a"), np.rot90(LABEL, -1))


def _without_classes(src):
    (src / "class_names.txt").unlink()


def _two_kinds(src):
    labelme(src / "lm")
    coco(src / "cc")


def _other_size(src):
    mask(src / "SegmentationClass/a.png", LABEL[:9])


def _too_many_values(src):
    mask(src / "SegmentationClass/a.png", LABEL + 5)


def _unknown_line(src):
    (src / "ImageSets/Segmentation/val.txt").write_text("c\na 2\n")


def _two_masks(src):
    for name in "ab":
        mask(src / f"SegmentationClass/{name}_mask.png")


def _colours_without_a_list(src):
    mask(src / "SegmentationClass/a.png", colour=True)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without_classes, "has no list of classes; write one name per line"),
        (_two_kinds, "holds annotations of coco and labelme .*; choose with --from"),
        (_other_size, "a.png: label map of 30×9 pixels for an image of 30×20"),
        (_too_many_values, "masks have the values 0, 1, 2, 5, 6, 7, but the class list names 3"),
        (_unknown_line, "val.txt line 2 names 'a 2', which is no photo"),
        (_two_masks, "2 photos have several masks, .* choose with --mask_suffix"),
        (_colours_without_a_list, "a.png: label map of mode RGB, .*classes.txt: name #RRGGBB"),
        (lambda src: (src / "x.json").write_text("{"), "x.json cannot be read as JSON"),
        (lambda src: (src / "JPEGImages/a.jpg").write_bytes(b"x"), "cannot be read as an image"),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_written(convert, tmp_path, damage, sentence):
    (tmp_path / "src").mkdir()
    voc(tmp_path / "src")
    damage(tmp_path / "src")
    code, printed, out = convert()
    assert code == 2 and re.search(sentence, printed), printed
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["annotations"][0].update(segmentation=[]), "1 annotations without an outline"),
        (lambda c: [a.pop("segmentation") for a in c["annotations"]], "boxes but no outlines"),
        (lambda c: c["annotations"][0].update(category_id=99), "categories, the first 99; correct"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "photo 'gone.jpg', which is not below"),
        (lambda c: c["images"][0].pop("file_name"), "lacks a field or has one of a wrong kind"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2]]), "outline of 1 corners"),
        (lambda c: c["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
         or c["categories"][1].update(supercategory="things"), "left out: category things"),
    ],
)  # fmt: skip
def test_coco_files_that_are_not_whole(convert, tmp_path, change, sentence):
    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    path = tmp_path / "src/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert sentence in convert()[1]


def test_damaged_annotations_end_in_a_sentence(convert, tmp_path):
    """Values of a LabelMe file are replaced one by one; whole is only what was not needed."""
    (tmp_path / "src").mkdir()
    labelme(tmp_path / "src")
    path = tmp_path / "src/train/b.json"
    content = json.loads(path.read_text())
    for field in ("label", "points", "shape_type"):
        for value in (None, 3, [], {}, "x", [[1e99, 0]] * 3):
            changed = json.loads(json.dumps(content))
            changed["shapes"][1][field] = value
            path.write_text(json.dumps(changed))
            code, printed, out = convert()
            assert code in (0, 2) and (code == 0) == out.exists(), printed
            shutil.rmtree(out, ignore_errors=True)


def test_out_must_be_new(convert, tmp_path):
    (tmp_path / "src").mkdir()
    voc(tmp_path / "src")
    assert convert()[0] == 0
    code, printed, _ = convert()
    assert code == 2 and "is not empty; choose another folder" in printed
    code = prepare.main(["folder", str(tmp_path / "src"), f"--out={tmp_path / 'src/out'}"])
    assert code == 2
