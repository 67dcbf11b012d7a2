"""`prepare folder`: which photo an annotation belongs to, and annotations that mean no photo or class."""

import json

import numpy as np
import pytest
from PIL import Image

from semivl_jax.data.foreign import convert as conversion
from semivl_jax.data.foreign.dataset import ForeignDataset, ForeignPhoto
from semivl_jax.data.foreign.photo_files import PhotoFiles
from tests.data.foreign.exports import LABEL, coco, cvat_xml, labelme, photo, voc
from tfds_builders.folder_semi.scan import scan


def cvat(path, images, *, more=""):
    """annotations.xml with a box per image: {name: further attributes}."""
    boxes = "".join(
        f'<image name="{name}" width="30" height="20" {attributes}>'
        f'<box label="car" xtl="6" ytl="4" xbr="18" ybr="12"/>{more}</image>'
        for name, attributes in images.items()
    )
    labels = "<labels><label><name>car</name></label></labels>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotations><meta><task>{labels}</task></meta>{boxes}</annotations>")


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


INSTANCES = "annotations/instances_train2017.json"


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        (["data/cam1/0.jpg", "data/cam2/0.jpg"], "cam1/0.jpg", "data/cam1/0.jpg"),
        (["data/cam1/0.jpg", "data/cam2/0.jpg"], r"C:\photos\cam2\0.jpg", "data/cam2/0.jpg"),
        (["data/cam1/0.jpg", "data/cam2/0.jpg"], "0.jpg", "twice"),
        (["data/cam1/0.jpg", "data/cam2/0.jpg"], "cam3/0.jpg", "twice"),
        (["data/0.jpg", "json/0.jpg", "json/images/0.jpg"], "0.jpg", "json/0.jpg"),
        (["images/0.jpg", "images/train/0.jpg"], "0.jpg", "images/0.jpg"),
        (["data/0.jpg"], "1.jpg", "missing"),
    ],
)
def test_the_photo_of_a_name_has_the_longest_end_of_its_path(tmp_path, files, name, found):
    for file in files:
        photo(tmp_path / file)
    photos, source = PhotoFiles(tmp_path), tmp_path / "json/x.json"
    if found in ("twice", "missing"):
        there = "2 times below" if found == "twice" else "not below"
        with pytest.raises(ValueError) as raised:
            photos.find(source, name)
        assert f"{source} names the photo {name!r}, which is {there} {tmp_path}" in str(
            raised.value
        )
    else:
        assert photos.find(source, name) == tmp_path / found


def test_cvat_photos_of_one_name_keep_their_masks(convert, tmp_path):
    for camera in ("cam1", "cam2"):
        for number in range(2):
            photo(tmp_path / f"src/data/{camera}/{number}.jpg")
    cvat(tmp_path / "src/annotations.xml", {"cam1/0.jpg": "", "cam1/1.jpg": ""})
    _, printed, out = convert("--validation=0.5")
    found = scan(out)
    masked = {photo.id for photo in (*found.train, *found.validation) if photo.mask}
    assert masked == {"data/cam1/0", "data/cam1/1"}, printed


def test_cvat_subsets_have_folders_of_their_own(convert, tmp_path):
    for subset in ("Train", "Validation"):
        photo(tmp_path / f"src/images/{subset}/a.jpg")
    cvat(tmp_path / "src/annotations.xml", {"a.jpg": 'subset="Train"'})
    text = (tmp_path / "src/annotations.xml").read_text()
    second = text[text.index("<image") : text.index("</annotations>")].replace(
        "Train", "Validation"
    )
    (tmp_path / "src/annotations.xml").write_text(
        text.replace("</annotations>", f"{second}</annotations>")
    )
    _, printed, out = convert()
    assert "1 training photos, 1 of them with a mask, 1 validation photos" in printed
    for part, subset in (("train", "Train"), ("val", "Validation")):
        kept = (out / f"images/{part}/a.jpg").read_bytes()
        assert kept == (tmp_path / f"src/images/{subset}/a.jpg").read_bytes()


@pytest.mark.parametrize("outside", ["../photos/{}.jpg", "{tmp}/photos/{}.jpg"])
def test_photos_elsewhere_are_written_below_out_by_their_names(convert, tmp_path, outside):
    names = [outside.format(number, tmp=tmp_path) for number in range(2)]
    for number in range(2):
        photo(tmp_path / f"photos/{number}.jpg")
    before = sorted(tmp_path.rglob("photos/*"))
    cvat(tmp_path / "src/annotations.xml", dict.fromkeys(names, ""))
    _, printed, out = convert()
    parts = {path.name: path.parent for path in out.rglob("*.jpg")}
    assert parts.keys() == {"0.jpg", "1.jpg"}
    assert set(parts.values()) == {out / "images/train", out / "images/val"}
    assert sorted(tmp_path.rglob("photos/*")) == before, printed


@pytest.mark.parametrize("id", ["../../../a", "/{tmp}/a"])
def test_nothing_is_written_outside_the_new_folder(tmp_path, id):
    photo(tmp_path / "src/a.jpg")
    found = ForeignPhoto(id.format(tmp=tmp_path), tmp_path / "src/a.jpg", mask=lambda: LABEL)
    problem = conversion._write((found, "train", tmp_path / "out"))
    assert "lies outside" in problem
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.jpg"]


def test_a_photo_of_both_parts_is_an_error(convert, tmp_path):
    """Validation must not be on training photos."""
    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    train = (tmp_path / "src" / INSTANCES).read_text()
    (tmp_path / "src/annotations/instances_val2017.json").write_text(train)
    code, printed, _ = convert()
    assert code == 2 and "is for training and for validation" in printed
    assert "instances_train2017.json" in printed and "instances_val2017.json" in printed


def test_a_linked_photo_of_both_parts_is_an_error(convert, tmp_path):
    (tmp_path / "src").mkdir()
    voc(tmp_path / "src")
    (tmp_path / "src/JPEGImages/c.jpg").unlink()
    (tmp_path / "src/JPEGImages/c.jpg").symlink_to("a.jpg")
    code, printed, _ = convert()
    assert code == 2 and "is for training and for validation" in printed


def test_a_photo_that_is_annotated_twice_is_an_error(convert, tmp_path):
    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    train = tmp_path / "src" / INSTANCES
    train.with_name("keypoints_train2017.json").write_text(train.read_text())
    code, printed, _ = convert()
    assert code == 2 and "a.jpg is annotated in " in printed and "keypoints" in printed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: [a.update(image_id="0") for a in c["annotations"][:2]],
         "has 2 annotations whose image_id is none of its images, the first '0'; correct or remove"),
        (lambda c: [a.update(category_id="3") for a in c["annotations"][:1]],
         "has 1 annotations whose category_id is none of its categories, the first '3'; correct"),
        (lambda c: c["images"][1].update(id=0), "has two images with the id 0; number them again"),
    ],
)  # fmt: skip
def test_coco_annotations_belong_to_one_image_and_category(convert, tmp_path, change, sentence):
    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    change_json(tmp_path / "src" / INSTANCES, change)
    code, printed, _ = convert()
    assert code == 2 and f"{INSTANCES} {sentence}" in printed


def test_one_annotations_xml_is_read_not_the_first_of_several(convert, tmp_path):
    for number in (1, 2):
        photo(tmp_path / f"src/{number}/{number}.jpg")
        cvat(tmp_path / f"src/{number}/annotations.xml", {f"{number}.jpg": ""})
    code, printed, _ = convert()
    assert code == 2 and "2/annotations.xml; convert them one by one" in printed


@pytest.mark.parametrize(
    "name",
    [
        "vehicle: car",
        "vehicle:car",
        "1",
        "track #2",
        "# 2",
        "",
        "__ignore__",
        "sign, 10 20 30",
        "a\u200b",
    ],
)
def test_classes_that_would_be_read_as_others_are_refused(name):
    dataset = ForeignDataset("coco", ("background", name), ())
    with pytest.raises(
        ValueError, match=r"x\.json has the class .*; rename it in the annotations"
    ) as raised:
        dataset.class_lines("x.json")
    assert repr(name) in str(raised.value)


def test_nothing_is_written_for_classes_that_would_be_read_as_others(convert, tmp_path):
    (tmp_path / "src").mkdir()
    cvat_xml(tmp_path / "src")
    path = tmp_path / "src/annotations.xml"
    path.write_text(path.read_text().replace("dog", "vehicle: dog"))
    code, printed, out = convert()
    assert code == 2 and "it would be read as 'vehicle'" in printed and not out.exists()


@pytest.mark.parametrize("form", [coco, cvat_xml])
def test_a_class_list_that_would_not_be_read_is_refused(convert, tmp_path, form):
    (tmp_path / "src").mkdir()
    form(tmp_path / "src")
    code, printed, _ = convert("--classes=mine.txt")
    assert code == 2 and "--classes=mine.txt: annotations of" in printed


def test_names_that_make_a_numbered_list_are_refused(convert, tmp_path):
    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    for path in (tmp_path / "src").rglob("*.json"):
        path.write_text(path.read_text().replace("car", "0 intact").replace("dog", "1 torn"))
    code, printed, _ = convert("--rest=ignore")
    assert code == 2 and "the class '0 intact'" in printed and "as 'intact'" in printed


@pytest.mark.parametrize(("form", "rest"), [(coco, 0), (coco, 255), (cvat_xml, 0)])
def test_the_label_background_of_labelme_is_what_lies_outside(convert, tmp_path, form, rest):
    (tmp_path / "src").mkdir()
    form(tmp_path / "src")
    for path in (tmp_path / "src").rglob("annotations*/*.json" if form is coco else "*.xml"):
        path.write_text(path.read_text().replace("dog", "_background_"))
    _, printed, out = convert(*["--rest=ignore"] * (rest == 255))
    assert scan(out).about.classes == (("car",) if rest else ("background", "car")), printed
    values = {int(v) for path in out.rglob("*.png") for v in np.unique(Image.open(path))}
    assert values == ({0, 255} if rest else {0, 1})


NUMBERS = [
    ('height="20"', 'height="x"', "image a.jpg: its height is 'x', which is no number"),
    ('width="30"', "", "image a.jpg: its width is None, which is no number"),
    ('height="20"', 'height="-3"', "image a.jpg: an image of 30x-3 pixels cannot be drawn on"),
    ('z_order="0"', 'z_order="top"', "image a.jpg: z_order of a box is 'top'"),
    ('z_order="0"', 'rotation="x"', "image a.jpg: rotation of a box is 'x'"),
    ('xtl="6"', 'xtl="nan"', "image a.jpg: xtl of a box is 'nan', which is no number; correct it"),
    ('xtl="6"', "", "image a.jpg: xtl of a box is None"),
    ('rle="0,72"', 'rle="0,y"', "image a.jpg: rle of a mask is 'y'"),
    ('left="14"', 'left="1e999"', "image a.jpg: left of a mask is '1e999'"),
    ("14.0,10.0", "14.0,z", "image b.jpg: an outline has a corner that is no pair of numbers"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), NUMBERS)
def test_cvat_values_that_are_no_numbers(convert, tmp_path, old, new, sentence):
    (tmp_path / "src").mkdir()
    cvat_xml(tmp_path / "src")
    path = tmp_path / "src/annotations.xml"
    text = path.read_text().replace("14,10", "14.0,10.0")
    assert old in text
    path.write_text(text.replace(old, new))
    code, printed, _ = convert()
    assert code == 2 and f"{path}, {sentence}" in printed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["images"][0].update(height="x"), "image a.jpg: its height is 'x'"),
        (lambda c: c["images"][0].update(width=float("inf")), "image a.jpg: its width is inf"),
        (lambda c: c["images"][0].pop("width"), "image a.jpg: its width is None"),
        (lambda c: c["annotations"][0].update(area="x"), "image a.jpg: area of an annotation is 'x'"),
        (lambda c: c["annotations"][0].update(segmentation=[["x"] * 6]),
         "image a.jpg: an outline has a corner that is no pair of numbers"),
        (lambda c: c["annotations"][0].update(segmentation={"counts": ["x"]}),
         "image a.jpg: run lengths that are no whole numbers"),
        (lambda c: c["annotations"][0].update(segmentation={"counts": [600], "size": 3}),
         "image a.jpg: run lengths of size 3 for an image of"),
    ],
)  # fmt: skip
def test_coco_values_that_are_no_numbers(convert, tmp_path, change, sentence):
    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    path = tmp_path / "src" / INSTANCES
    change_json(path, change)
    code, printed, _ = convert()
    assert code == 2 and str(path) in printed and sentence in printed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(imageHeight="x"), "its imageHeight is 'x', which is no number"),
        (lambda c: c.update(imageWidth=None), "its imageWidth is None"),
        (lambda c: c["shapes"][1].update(points=[["x", 0]] * 3), "no pair of numbers"),
        (lambda c: c["shapes"][0].update(points=[["x", 0]] * 2), "no pair of numbers"),
        (lambda c: c["shapes"][0].update(points=[[1, 2]]), "a rectangle has 1 corners, it needs 2"),
        (lambda c: c["shapes"][0].update(shape_type="circle", points=[[1, 2]]), "a circle has 1"),
        (lambda c: c["shapes"][0].update(shape_type="mask"), "a mask holds no picture"),
        (lambda c: c["shapes"][0].pop("label"), "lacks a field or has one of a wrong kind"),
    ],
)
def test_labelme_values_that_are_no_numbers(convert, tmp_path, change, sentence):
    (tmp_path / "src").mkdir()
    labelme(tmp_path / "src")
    path = tmp_path / "src/train/b.json"
    change_json(path, change)
    code, printed, _ = convert()
    assert code == 2 and f"{path}" in printed and sentence in printed


def test_json_that_is_nested_too_deep(convert, tmp_path):
    photo(tmp_path / "src/a.jpg")
    (tmp_path / "src/a.json").write_text("[" * 100_000)
    code, printed, _ = convert()
    assert code == 2 and "a.json cannot be read as JSON" in printed
