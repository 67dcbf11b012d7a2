"""Archives of the public data sets in small: the published layout, a few images each."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.file_server import FileServer
from tfds_builders.builders import PUBLISHED
from tfds_builders.published import PublishedBuilder

SIZES = {"train": 3, "validation": 2}
ROOT = Path(__file__).parents[2]


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


def dummy_data(dataset):
    """The folder beside a builder with what its archives hold, in small: noise, and masks of a few values.

    The boxes of coco_instances: category 1 is class 1, 90 is class 2; a square of 8 pixels, on it one of 4,
    and a crowd in column 0.
    """
    return ROOT / "tfds_builders" / f"{dataset.removesuffix('_instances')}_semi" / "dummy_data"


def contents(dataset):
    """{file of the data set: {member: bytes}}; lists are single texts."""
    found = {}
    for file in PUBLISHED[dataset].FILES:
        place = dummy_data(dataset) / file.name
        folder = place.with_suffix("")
        found[file.name] = (
            {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            if folder.is_dir()
            else place.read_bytes()
        )
    if dataset == "voc":
        found["ground_truth_voc.zip"]["__MACOSX/SegmentationClass/._2007_000000.png"] = b"no image"
    return found


def pack(name, content):
    if isinstance(content, bytes):
        return content
    return pack_tar(content) if name.endswith(".tar") else pack_zip(content)


def builder(dataset, contents, server: FileServer, data_dir, **options) -> PublishedBuilder:
    """A builder whose files come from the server; its checksums are right."""
    files = []
    for file in PUBLISHED[dataset].FILES:
        data = pack(file.name, contents[file.name])
        url = ""
        if file.url:
            server.files[file.name] = data
            url = server.url(file.name)
        files.append(dataclasses.replace(file, url=url, sha256=sha256(data), size=len(data)))
    build = PUBLISHED[dataset](data_dir=data_dir, **options)
    build.files, build.SIZES = tuple(files), SIZES
    return build
