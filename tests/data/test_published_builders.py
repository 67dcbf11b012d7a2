"""The public data sets from archives of the published layout: records and errors."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from semivl_jax.data import images, label_files
from semivl_jax.data.foreign import drawing
from semivl_jax.data.source import open_source
from tests.data import archive_files
from tests.data.archive_files import SIZES, mask, pack, photo
from tests.data.file_server import serve
from tfds_builders import archives, common, published
from tfds_builders.builders import PUBLISHED
from tfds_builders.coco_semi import instances
from tfds_builders.folder_semi import FolderSemi

LOGIN = "leftImg8bit_trainvaltest.zip"


@pytest.fixture
def server():
    with serve() as running:
        yield running


def make(dataset, server, tmp_path, *, change=lambda contents: None):
    """The builder, with archives that take a login put into its folder."""
    contents = archive_files.contents(dataset)
    change(contents)
    build = archive_files.builder(dataset, contents, server, tmp_path)
    for file in build.files:
        if not file.url:
            build.downloads.mkdir(parents=True)
            (build.downloads / file.name).write_bytes(pack(file.name, contents[file.name]))
    return build


def nothing_prepared(build):
    place = build.data_path.parent
    return not place.exists() or [p.name for p in place.iterdir()] in ([], [".lock"])


EXPECTED = {  # ids of both parts, values of the first training mask, values stored there
    "voc": (("2007_000001", "2007_000003", "2007_000000"), ("2007_000002", "2007_000004"), [1, 20]),
    "coco": (("000000000009", "000000000025", "000000000030"), ("000000000139", "000000000285"),
             [0, 80]),
    "coco_instances": (("000000000025", "000000000009", "000000000030"),
                       ("000000000139", "000000000285"), [0, 1, 2]),
    "ade20k": (tuple(f"ADE_train_{i:08d}" for i in (1, 2, 3)),
               tuple(f"ADE_val_{i:08d}" for i in (1, 2)), [0, 149]),
    "cityscapes": (("bochum_000001_000019", "bochum_000002_000019", "weimar_000000_000019"),
                   ("lindau_000003_000019", "munster_000004_000019"), [1, 18]),
}  # fmt: skip


def assert_is_a_tfds_builder(build, sizes):
    """What `tfds.testing.DatasetBuilderTestCase`, which needs TensorFlow, checks of a prepared builder."""
    assert isinstance(build, tfds.core.GeneratorBasedBuilder) and build.info.description
    assert build.name in tfds.list_builders(with_community_datasets=False)
    for opened in (build, tfds.builder_from_directory(build.data_path)):
        assert {part: split.num_examples for part, split in opened.info.splits.items()} == sizes
    seen = {}
    for part, count in sizes.items():
        decoders = {"label": tfds.decode.SkipDecoding()}
        records = list(build.as_data_source(part, decoders=decoders))
        assert len(records) == count
        assert all(r["image"].dtype == np.uint8 and r["image"].shape[2] == 3 for r in records)
        assert {r["label"][:4] for r in records} <= {b"\x89PNG", b""}
        seen[part] = {record["image"].tobytes() for record in records}
    assert not seen["train"] & seen["validation"]


def test_the_folder_builder_on_its_dummy_data(tmp_path):
    folder = archive_files.ROOT / "tfds_builders" / "folder_semi" / "dummy_data"
    before = sorted(folder.rglob("*"))
    build = FolderSemi(folder, data_dir=tmp_path)
    common.prepare(build)
    assert_is_a_tfds_builder(build, {"train": 4, "validation": 1})
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_prepares_what_the_archives_hold(dataset, server, tmp_path):
    build = make(dataset, server, tmp_path)
    directory = common.prepare(build)
    assert_is_a_tfds_builder(build, SIZES)
    train, validation = (open_source(directory, part) for part in common.PARTS)
    ids, val_ids, values = EXPECTED[dataset]
    assert sorted(train.ids) == sorted(ids) and validation.ids == val_ids
    assert train.labels_exist().all()
    record = train[train.ids.index(ids[0])]
    label = label_files.decode_label(record.label)
    assert sorted({*np.unique(label)} - {255}) == values
    assert images.decode_image(record.image).shape == (20, 28, 3)
    assert dataset.startswith(train.info.name) and build.info.citation and build.info.homepage
    requests = len(server.requests)
    assert common.prepare(build) == directory
    assert len(server.requests) == requests
    assert all(there for _, there, _ in build.status())


def test_wrong_checksum(server, tmp_path):
    build = make("coco", server, tmp_path)
    server.files["ground_truth_coco.zip"] = server.files["val2017.zip"]
    with pytest.raises(
        ValueError,
        match=r"ground_truth_coco\.zip is not the expected file: .*remov.*take coco_instances",
    ):
        common.prepare(build)
    assert nothing_prepared(build)
    assert not list(build.downloads.glob("*.zip*"))
    assert len(server.requests) == 1  # the small file first


def test_a_missing_manual_archive_is_reported_before_anything_is_downloaded(server, tmp_path):
    build = archive_files.builder(
        "cityscapes", archive_files.contents("cityscapes"), server, tmp_path
    )
    message = (
        rf"needs {LOGIN}.* download it from https://www\.cityscapes.* put it into .*/cityscapes"
    )
    with pytest.raises(ValueError, match=message):
        common.prepare(build)
    assert nothing_prepared(build) and server.requests == []
    assert [there for _, there, _ in build.status()] == [False, False]


def test_manual_dir_with_an_archive_and_an_unpacked_one(server, tmp_path):
    contents = archive_files.contents("cityscapes")
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / LOGIN).write_bytes(pack(LOGIN, contents[LOGIN]))
    for name, data in contents["ground_truth_cityscapes.zip"].items():
        path = manual / "ground_truth_cityscapes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    build = archive_files.builder(
        "cityscapes", contents, server, tmp_path / "data", manual_dir=manual
    )
    assert open_source(common.prepare(build), "train").ids == (EXPECTED["cityscapes"][0])
    assert server.requests == []
    with pytest.raises(ValueError, match=r"data\.manual_dir = '/no/such' is no folder"):
        PUBLISHED["voc"](data_dir=tmp_path, manual_dir="/no/such")


IMAGE = "ADEChallengeData2016/images/training/ADE_train_00000002.jpg"
LABEL = "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        (IMAGE, photo(1)[:300], "image .*ADE_train_00000002.jpg in .* cannot be used"),
        (
            LABEL,
            mask([1], size=(28, 20)),
            "label of .*: label map of 20×28 pixels .* of 28×20 .perhaps",
        ),
        (
            LABEL,
            mask([151]),
            "ADE_train_00000002.jpg .* it has the value 151; ADE20K stores 0 to 150",
        ),
        (
            LABEL,
            photo(1, kind="png"),
            "label of .*00000002.jpg .* cannot be used: label map of mode",
        ),
        (LABEL, None, "no mask for ADE_train_00000002"),
        (IMAGE, None, "2 images for train instead of 3"),
    ],
)
def test_bad_contents(member, data, message, server, tmp_path):
    def change(contents):
        members = contents["ADEChallengeData2016.zip"]
        members.pop(member)
        if data is not None:
            members[member] = data

    build = make("ade20k", server, tmp_path, change=change)
    with pytest.raises(ValueError, match=message):
        common.prepare(build)
    assert nothing_prepared(build)


def test_damaged_archives(server, tmp_path):
    """Files without a known checksum."""
    for position, cut in enumerate((slice(0, 500), slice(None))):
        build = make("ade20k", server, tmp_path / str(position))
        build.files = tuple(dataclasses.replace(f, sha256="", size=0) for f in build.files)
        data = bytearray(server.files["ADEChallengeData2016.zip"])
        data[400:410] = bytes(10)
        server.files["ADEChallengeData2016.zip"] = bytes(data[cut])
        message = "is no complete archive" if cut.stop else "is damaged at ADE.*train_00000003"
        with pytest.raises(ValueError, match=f"{message}.*delete it"):
            common.prepare(build)
        assert nothing_prepared(build)


def test_other_editions(server, tmp_path):
    def change(contents):
        contents["ground_truth_voc.zip"].pop("SegmentationClass/2007_000003.png")

    with pytest.raises(ValueError, match=r"no mask for 2007_000003 \(1 images of train in all"):
        common.prepare(make("voc", server, tmp_path / "a", change=change))

    def twice(contents):
        contents["ground_truth_voc.zip"]["raw/2007_000003.png"] = mask([1])

    with pytest.raises(ValueError, match=r"holds both SegmentationClass/2007_000003\.png and raw/"):
        common.prepare(make("voc", server, tmp_path / "b", change=twice))


def test_prepared_copy_of_another_size_is_refused(server, tmp_path):
    build = make("ade20k", server, tmp_path)
    common.prepare(build)
    build.SIZES = SIZES | {"train": 4}
    with pytest.raises(ValueError, match="has 3 images for train instead of 4; delete"):
        common.prepare(build)


def test_orientation_data_are_dropped_and_pixels_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(1, exif=exif)
    assert images.decode_image(turned).shape == (28, 20, 3)
    assert published.as_stored(turned) == photo(1)
    for same in (photo(1), photo(1, kind="png"), b"no image", b""):
        assert published.as_stored(same) == same


def test_instances_are_drawn_like_their_outlines():
    big, small = (1, 64, [[4, 4, 12, 4, 12, 12, 4, 12]]), (7, 16, [[6, 6, 10, 6, 10, 10, 6, 10]])
    label = instances.draw([small, big], (20, 28))
    expected = np.zeros((20, 28), np.uint8)
    expected[4:12, 4:12], expected[6:10, 6:10] = 1, 7
    np.testing.assert_array_equal(label, expected)
    crowd = drawing.run_lengths([21, 3, 536], (20, 28))
    assert np.argwhere(crowd).tolist() == [[1, 1], [2, 1], [3, 1]]
    with pytest.raises(ValueError, match="run lengths of 4 pixels for an image of 28x20"):
        drawing.run_lengths([4], (20, 28))
    with pytest.raises(ValueError, match="holds no instance annotations"):
        instances.mask_archive(Path("a.json"), b"{}")


def test_unknown_and_damaged_archives(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"")
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"neither \.zip nor \.tar"):
        archives.open_archive(tmp_path / "a.rar")
    with pytest.raises(ValueError, match="no complete archive"):
        archives.open_archive(tmp_path / "a.tar")


def test_preparing_needs_neither_jax_nor_tensorflow(tmp_path):
    script = (
        "import sys; from tfds_builders.builders import PUBLISHED;"
        f"PUBLISHED['voc'](data_dir={str(tmp_path)!r}).status();"
        "assert not {'jax', 'tensorflow'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_known_checksums_are_read_also_by_tfds():
    for build in PUBLISHED.values():
        known = {url: info.checksum for url, info in (build.url_infos or {}).items()}
        for file in build.known_files():
            if file.size:
                assert known[file.url] == file.sha256
