"""Small folders as other tools write them: three photos with the label map `LABEL` and one without."""

import base64
import json

import numpy as np
from PIL import Image

from tests.data.image_bytes import encoded

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
