"""`prepare folder`: data of other tools become a folder that trains, with nothing lost or guessed unsaid."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from semivl_jax import prepare
from semivl_jax.data.label_files import decode_label
from tests.data.image_bytes import encoded
from tests.data.photos import prepared
from tfds_builders.folder_semi.scan import scan

SIZE = (20, 30)
LABEL = np.zeros(SIZE, np.uint8)
LABEL[4:12, 6:18] = 1
LABEL[10:16, 14:26] = 2
COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
OUTLINES = {"car": [6, 4, 18, 4, 18, 12, 6, 12], "dog": [14, 10, 26, 10, 26, 16, 14, 16]}


def photo(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def mask(path, label=LABEL, *, colour=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[label] if colour else label).save(path)


@pytest.fixture
def convert(tmp_path, capsys):
    """`convert(options)` → (exit code, what was printed, the folder written)."""

    def run(*options):
        out = tmp_path / "out"
        code = prepare.main(["folder", str(tmp_path / "src"), f"--out={out}", *options])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and printed.err.count("\n") <= 1
        return code, printed.out + printed.err, out

    return run


def stored(out, name):
    return decode_label((out / "masks" / f"{name}.png").read_bytes())


def voc(src):
    for name in "abcd":
        photo(src / f"JPEGImages/{name}.jpg")
    for name in "abc":
        mask(src / f"SegmentationClass/{name}.png")
        mask(src / f"SegmentationObject/{name}.png")
    (src / "class_names.txt").write_text("_background_\ncar\ndog\n")
    lists = src / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")


def cvat_masks(src):
    voc(src)
    (src / "class_names.txt").unlink()
    (src / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:128,0,0::\ndog:0,128,0::\n"
    )
    for name in "abc":
        mask(src / f"SegmentationClass/{name}.png", colour=True)


def cityscapes(src):
    for part, names in {"train": "abd", "val": "c"}.items():
        for name in names:
            photo(src / f"leftImg8bit/{part}/ulm/{name}_leftImg8bit.png")
            if name != "d":
                mask(src / f"gtFine/{part}/ulm/{name}_gtFine_labelIds.png")
                mask(src / f"gtFine/{part}/ulm/{name}_gtFine_color.png", colour=True)
    (src / "classes.txt").write_text("background\ncar\ndog\n")


def pairs(src):
    for part, names in {"train": "abd", "valid": "c"}.items():
        for name in names:
            photo(src / f"{part}/{name}.jpg")
            if name != "d":
                mask(src / f"{part}/{name}_mask.png")
    (src / "train/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n2, dog\n")


def coco(src):
    for part, names in {"train": "abd", "val": "c"}.items():
        images, annotations = [], []
        for number, name in enumerate(names):
            photo(src / f"{part}2017/{name}.jpg")
            facts = {"id": number, "file_name": f"{name}.jpg", "height": 20, "width": 30}
            images += [facts] if name != "d" else []
            for category, (outline, area) in enumerate(
                zip(OUTLINES.values(), (96, 72), strict=True)
            ):
                if name == "d":
                    continue
                entry = {"image_id": number, "category_id": 7 - 4 * category, "area": area}
                runs = (LABEL == 2).T.ravel()
                edges = np.flatnonzero(np.diff(np.concatenate([[0], runs, [0]])))
                counts = np.diff(np.concatenate([[0], edges, [600]])).tolist()
                rle = {"counts": counts, "size": [20, 30]}
                entry["segmentation"] = rle if name == "a" and category else [outline]
                annotations.append(entry)
        categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "car"}]
        # Numbers 3 and 7 are values 1 and 2 in this order, whatever the order of the list.
        for entry in annotations:
            entry["category_id"] = {7: 3, 3: 7}[entry["category_id"]]
        path = src / f"annotations/instances_{part}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def labelme(src):
    for part, names in {"train": "abd", "val": "c"}.items():
        for name in names:
            photo(src / f"{part}/{name}.jpg")
            if name == "d":
                continue
            whole = encoded(Image.fromarray(np.full((6, 12), 255, np.uint8)))
            shapes = [
                shape("car", [[18, 12], [6, 4]], "rectangle"),
                shape("dog", np.reshape(OUTLINES["dog"], (-1, 2)).tolist()),
                shape("car", [[0, 0], [1, 1]], "line"),
            ]
            if name == "a":
                encoded_mask = base64.b64encode(whole).decode()
                shapes[1] = shape("dog", [[14, 10], [26, 16]], "mask", mask=encoded_mask)
            where = rf"..\{part}\{name}.jpg" if name == "b" else f"{name}.jpg"
            facts = {"imagePath": where, "imageHeight": 20, "imageWidth": 30}
            (src / f"{part}/{name}.json").write_text(json.dumps({"shapes": shapes, **facts}))


def cvat_xml(src):
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("car", "dog"))
    images = ""
    for name, subset in {"a": "Train", "b": "Train", "c": "Validation"}.items():
        photo(src / f"images/{name}.jpg")
        points = ";".join(f"{x},{y}" for x, y in np.reshape(OUTLINES["dog"], (-1, 2)).tolist())
        dog = f'<polygon label="dog" points="{points}" z_order="1"/>'
        if name == "a":
            dog = '<mask label="dog" rle="0,72" left="14" top="10" width="12" height="6" z_order="1"/>'
        images += (
            f'<image id="0" name="{name}.jpg" width="30" height="20" subset="{subset}">{dog}'
            '<box label="car" xtl="6" ytl="4" xbr="18" ybr="12" z_order="0"/>'
            '<polyline label="car" points="1,1;2,2"/></image>'
        )
    photo(src / "images/d.jpg")
    text = f"<annotations><meta><task><labels>{labels}</labels></task></meta>{images}</annotations>"
    (src / "annotations.xml").write_text(text)


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
        (lambda c: c["annotations"][0].update(category_id=99), "the category 99, which has no name"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "photo gone.jpg, which is not below"),
        (lambda c: c["images"][0].pop("height"), "annotations that lack a field"),
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
