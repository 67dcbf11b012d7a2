"""Archives of the public data sets in small: the published layout, a few images each."""

import dataclasses
import hashlib
import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image

from tests.data.file_server import FileServer
from tfds_builders.builders import published_builder
from tfds_builders.published import PublishedBuilder

SIZES = {"train": 3, "validation": 2}
_CITIES = (
    ("train", "weimar"),
    ("train", "bochum"),
    ("train", "bochum"),
    ("val", "lindau"),
    ("val", "munster"),
)


def photo(seed, *, size=(20, 28), kind="jpeg", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def mask(values, *, size=(20, 28)):
    pixels = np.resize(np.asarray(values, np.uint8), size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def pack_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            # A fixed date, so that equal members make equal bytes.
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def pack_tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def voc():
    """{file: members}; lists are single texts."""
    ids = [f"2007_{i:06d}" for i in range(6)]  # the last one belongs to neither part
    line = "JPEGImages/{0}.jpg SegmentationClass/{0}.png"
    folder = "VOCdevkit/VOC2012"
    return {
        "VOCtrainval_11-May-2012.tar": {
            f"{folder}/ImageSets/Segmentation/val.txt": b"",
            **{f"{folder}/JPEGImages/{id}.jpg": photo(i) for i, id in enumerate(ids)},
            **{f"{folder}/SegmentationClass/{id}.png": mask([9]) for id in ids[:2]},
        },
        "ground_truth_voc.zip": {
            f"SegmentationClass/{id}.png": mask([i, 20, 255]) for i, id in enumerate(ids)
        }
        | {"__MACOSX/SegmentationClass/._2007_000000.png": b"litter"},
        "1464-labeled.txt": line.format(ids[1]).encode(),
        "1464-unlabeled.txt": "\n".join(map(line.format, (ids[3], ids[0]))).encode(),
        "val.txt": "\n".join(map(line.format, (ids[2], ids[4]))).encode() + b"\n",
    }


def coco():
    train, val = [f"{i:012d}" for i in (9, 25, 30)], [f"{i:012d}" for i in (139, 285)]
    return {
        "train2017.zip": {f"train2017/{id}.jpg": photo(int(id)) for id in train},
        "val2017.zip": {f"val2017/{id}.jpg": photo(int(id)) for id in val},
        "ground_truth_coco.zip": {f"masks/{id}.png": mask([0, 80, 255]) for id in train + val},
    }


def coco_instances():
    """Category 1 is class 1, 90 class 2: a square of 8, on it one of 4, and a crowd in column 0."""
    contents = coco()
    del contents["ground_truth_coco.zip"]
    members = {}
    for year in ("train2017", "val2017"):
        numbers = [int(name[-16:-4]) for name in contents[f"{year}.zip"]]
        shapes = []
        for number in numbers[1:]:  # the first image shows no object
            for category, area, segmentation in (
                (90, 16, [[6, 6, 10, 6, 10, 10, 6, 10]]),
                (1, 64, [[4, 4, 12, 4, 12, 12, 4, 12]]),
                (90, 20, {"counts": [0, 20, 540], "size": [20, 28]}),
            ):
                shapes.append({"image_id": number, "category_id": category, "area": area,
                               "segmentation": segmentation})  # fmt: skip
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 20, "width": 28}
                  for n in numbers]  # fmt: skip
        facts = {"images": images, "annotations": shapes, "categories": [{"id": 90}, {"id": 1}]}
        members[f"annotations/instances_{year}.json"] = json.dumps(facts).encode()
        members[f"annotations/captions_{year}.json"] = b"{}"
    return contents | {"annotations_trainval2017.zip": members}


def ade20k():
    members = {"ADEChallengeData2016/objectInfo150.txt": b"", "ADEChallengeData2016/images/": b""}
    for part, prefix, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, count + 1):
            stem = f"{part}/ADE_{prefix}_{i:08d}"
            members[f"ADEChallengeData2016/images/{stem}.jpg"] = photo(i)
            members[f"ADEChallengeData2016/annotations/{stem}.png"] = mask([0, 1, 150])
    return {"ADEChallengeData2016.zip": members}


def cityscapes():
    images, masks = {}, {}
    for i, (part, city) in enumerate(_CITIES):
        stem = f"{part}/{city}/{city}_{i:06d}_000019"
        images[f"leftImg8bit/{stem}_leftImg8bit.png"] = photo(i, kind="png")
        masks[f"gtFine/{stem}_gtFine_labelTrainIds.png"] = mask([i, 18, 255])
    images["leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png"] = photo(9, kind="png")
    return {"leftImg8bit_trainvaltest.zip": images, "ground_truth_cityscapes.zip": masks}


MAKERS = {
    "voc": voc,
    "coco": coco,
    "coco_instances": coco_instances,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
}


def pack(name, content):
    if isinstance(content, bytes):
        return content
    return pack_tar(content) if name.endswith(".tar") else pack_zip(content)


def builder(dataset, contents, server: FileServer, tmp_path, **options) -> PublishedBuilder:
    """A builder whose files come from the server; its checksums are right."""
    files = []
    for file in type(published_builder(dataset, data_dir=tmp_path)).FILES:
        data = pack(file.name, contents[file.name])
        url = ""
        if file.url:
            server.files[file.name] = data
            url = server.url(file.name)
        files.append(dataclasses.replace(file, url=url, sha256=sha256(data), size=len(data)))
    return type(published_builder(dataset, data_dir=tmp_path))(
        data_dir=tmp_path, files=tuple(files), sizes=SIZES, **options
    )
