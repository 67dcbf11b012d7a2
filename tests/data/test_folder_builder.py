import re
import resource
import unicodedata

import numpy as np
import pytest
from PIL import Image

from semivl_jax import utils
from semivl_jax.data import images, label_files
from semivl_jax.data.source import open_source
from semivl_jax.data.splits import resolve_split
from tests.data.photos import make_folder, prepared, write_pair
from tfds_builders import common
from tfds_builders.folder_semi import FolderSemi
from tfds_builders.folder_semi.scan import parse_label_map, scan

RNG = np.random.default_rng(1)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos", masks=2, without=1, validation=1)


def test_records_hold_what_the_folder_holds(toy_folder, toy_source):
    assert toy_source.info.classes == ("sky", "road", "car")
    assert toy_source.info.definitions == (("sky",), ("road", "street"), ("car",))
    assert toy_source.ids[:2] == ("train00", "train01") and len(toy_source) == 13
    assert toy_source.labels_exist().tolist() == [True] * 6 + [False] * 7
    photo = toy_folder / "images/train/train03.jpg"
    mask = np.asarray(Image.open(toy_folder / "masks/train/train03.png"))
    record = toy_source[3]
    assert record.image == photo.read_bytes()
    np.testing.assert_array_equal(label_files.decode_label(record.label), mask)
    assert toy_source.pixels[3] == {v: int((mask == v).sum()) for v in np.unique(mask)}
    assert toy_source[8].label is None


def test_preparing_shows_progress(folder, monkeypatch, capfd):
    monkeypatch.setattr(utils, "LINE_INTERVAL", 0.0)
    common.prepare(FolderSemi(folder, data_dir=folder.parent / "prepared"))
    printed = capfd.readouterr().err
    assert re.search(r"^folder_semi\S*, train: 3 images, [\d.,]+/s$", printed, re.MULTILINE), (
        printed
    )
    assert "\r" not in printed and "\x1b" not in printed


def test_prepares_once_and_again_when_the_folder_changes(folder):
    data = folder.parent / "prepared"
    first = common.prepare(FolderSemi(folder, data_dir=data))
    written = sorted((p, p.stat().st_mtime_ns) for p in first.iterdir())
    assert common.prepare(FolderSemi(folder, data_dir=data)) == first
    assert sorted((p, p.stat().st_mtime_ns) for p in first.iterdir()) == written
    write_pair(folder, "train/new", rng=RNG)
    assert common.prepare(FolderSemi(folder, data_dir=data)) != first


def test_interrupted_preparation_is_not_taken_for_a_whole_one(folder, monkeypatch):
    builder = FolderSemi(folder, data_dir=folder.parent / "prepared")
    place = builder.data_path.parent
    remains = place / f"incomplete.AAAAAA_{builder.VERSION}"  # what a killed process leaves
    remains.mkdir(parents=True)
    (remains / "some.array_record").write_bytes(b"half")
    directory = common.prepare(builder)
    assert len(open_source(directory, "train")) == 3
    assert not remains.exists()


def test_missing_files_of_a_prepared_copy_are_named(folder):
    source = prepared(folder)
    record_file = next(source.directory.glob("*-train.array_record-*"))
    record_file.unlink()
    with pytest.raises(ValueError, match=rf"{record_file.name} is missing; delete the directory"):
        prepared(folder)


def test_flat_layout_other_formats_and_val_list(tmp_path):
    root = tmp_path / "flat"
    for name, suffix in (("a", ".jpg"), ("b", ".bmp"), ("c c", ".PNG"), ("sub/d", ".jpeg")):
        write_pair(root, name, rng=RNG, suffix=suffix, mask=name != "b")
    (root / "classes.txt").write_text("one\ntwo\n")
    (root / "val.txt").write_text("sub/d\n\n")
    source = prepared(root)
    assert source.ids == ("a", "b", "c c")
    assert source.labels_exist().tolist() == [True, False, True]
    original = np.asarray(Image.open(root / "images/b.bmp"))
    np.testing.assert_array_equal(images.decode_image(source[1].image), original)
    assert open_source(source.directory, "validation").ids == ("sub/d",)


def test_palette_masks_and_label_map(folder):
    mask = Image.fromarray(np.full((24, 30), 11, np.uint8)).convert("P")
    mask.putdata([11] * 700 + [2] * 20)
    mask.save(folder / "masks/train/train00.png")
    with pytest.raises(ValueError, match=r'train00.png has the value 11, .*label_map="11:255"'):
        prepared(folder)
    builder = FolderSemi(folder, label_map="11:255", data_dir=folder.parent / "prepared")
    source = open_source(common.prepare(builder), "train")
    assert source.pixels[0] == {2: 20, 255: 700}
    mask.putdata([3] * 700 + [2] * 20)
    mask.save(folder / "masks/train/train00.png")
    builder = FolderSemi(folder, label_map="n:255", data_dir=folder.parent / "prepared")
    assert open_source(common.prepare(builder), "train").pixels[0] == {2: 20, 255: 700}


def test_one_error_names_everything_that_cannot_be_used(folder):
    for name in ("train/train00", "train/train02", "val/val00"):
        path = folder / "images" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:300])
    Image.fromarray(np.full((24, 30), 9, np.uint8)).save(folder / "masks/train/train00.png")
    for name in ("train/train01", "val/val00"):
        mask = folder / "masks" / f"{name}.png"
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 7)).save(mask)
    with pytest.raises(ValueError) as raised:
        prepared(folder)
    first, *problems = str(raised.value).splitlines()
    assert first == "6 images or labels cannot be used:"
    for line, text in zip(
        problems,
        (
            "train00.png has the value 9",
            "train00.jpg cannot be used",
            "train01.png has the value 7, but",
            "train02.jpg cannot be used",
            "val00.jpg cannot be used",
        ),
        strict=True,
    ):
        assert text in line
    assert not list(folder.parent.glob("prepared/**/metadata.json"))


def test_unlabelled_images_in_another_folder(folder, tmp_path):
    apart = tmp_path / "elsewhere"
    for name in ("train00", "more/x"):
        write_pair(apart, name, rng=RNG, mask=False)
    (folder / "unlabelled").symlink_to(apart / "images")
    source = prepared(folder)
    assert source.ids[-2:] == ("unlabelled/more/x", "unlabelled/train00")
    assert source.labels_exist().tolist() == [True, True, False, False, False]
    listed = tmp_path / "listed.txt"
    listed.write_text("unlabelled/more/x\n")
    assert resolve_split(source, "1", unlabelled=str(listed)).unlabelled == (3,)
    write_pair(folder, "unlabelled/train00", rng=RNG)
    (folder / "images/train").rename(folder / "images/other")  # ids now start with their folder
    with pytest.raises(ValueError, match="would have the same id 'unlabelled/train00'"):
        scan(folder)
    (folder / "unlabelled").unlink()
    (folder / "unlabelled").mkdir()
    with pytest.raises(ValueError, match="unlabelled holds no image"):
        scan(folder)


def test_masks_without_an_image_are_mentioned(folder, capsys):
    (folder / "masks/train/train01.png").rename(folder / "masks/train/typo.png")
    prepared(folder)
    assert "1 masks belong to no image" in (printed := capsys.readouterr().out)
    assert "masks/train/typo.png" in printed


def test_unusual_names_and_text_files(tmp_path):
    """Capitals, spaces, accents (decomposed as on a Mac), links, notebooks' copies, Windows' text files."""
    root = tmp_path / "photos"
    accented = unicodedata.normalize("NFD", "Bäume é")
    write_pair(root, f"train/my {accented}", rng=RNG, suffix=".JPG")
    write_pair(root, "train/.ipynb_checkpoints/copy", rng=RNG)
    write_pair(root, "train/a.b", rng=RNG, suffix=".TIFF")
    (root / "masks/train/a.b.png").rename(root / "masks/train/a.b.PNG")
    write_pair(tmp_path / "elsewhere", "x", rng=RNG, mask=False)
    (root / "images/train/linked").symlink_to(tmp_path / "elsewhere/images")
    (root / "images/train/linked/circle").symlink_to(root / "images/train")
    write_pair(root, "val/v", rng=RNG)
    (root / "classes.txt").write_bytes("\ufeffWäsche\r\nroad : road,street\r\n\r\n".encode())
    source = prepared(root)
    assert source.info.classes == ("Wäsche", "road")
    assert source.ids == ("a.b", "linked/x", "my Bäume é")
    assert source.labels_exist().tolist() == [True, False, True]
    listed = tmp_path / "Liste ä.txt"
    listed.write_bytes("\ufeffmy Bäume é.JPG\r\n".encode())
    assert resolve_split(source, str(listed)).labelled == (2,)
    (root / "classes.txt").write_bytes("Wäsche\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"classes\.txt cannot be read as text .*; save it as UTF-8"
    ):
        scan(root)


def test_full_disk_leaves_nothing(folder):
    """A limit to the size of files makes the operating system refuse to write, as a full disk does."""
    builder = FolderSemi(folder, data_dir=folder.parent / "prepared")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"cannot be written to .*; make room"):
            common.prepare(builder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(folder.parent.glob("prepared/**/incomplete.*"))
    assert len(prepared(folder)) == 3


def _image(root):
    path = root / "images/train/train01.jpg"
    path.write_bytes(path.read_bytes()[:400])


def _all_masks_renamed(root):
    for path in (root / "masks/train").iterdir():
        path.rename(path.with_stem(path.stem + "_mask"))


def _shared_mask(root):
    (root / "masks/train/train00.png").rename(root / "masks/both.png")
    for part in ("train", "val"):
        write_pair(root, f"{part}/both", rng=RNG, mask=False)


def _mask(name, *shape):
    return lambda root: Image.fromarray(np.zeros(shape, np.uint8)).save(root / "masks" / name)


def _photo(width, height):
    def write(root):
        Image.new("RGB", (width, height)).save(root / "images/val/val00.jpg")
        Image.new("L", (width, height)).save(root / "masks/val/val00.png")

    return write


def _text(name, text):
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: (root / "classes.txt").unlink(), "has no classes.txt; write one class name"),
        (_image, "image .*train01.jpg cannot be used: .*; replace the file"),
        (
            _mask("train/train01.png", 9, 8),
            "label of .*train01.jpg cannot be used: label map of 8×9 .* of 37×29; give",
        ),
        (
            _mask("train/train00.png", 24, 30, 3),
            "train00.png cannot be used: .*colours instead of class indices",
        ),
        (_all_masks_renamed, "no mask for any training image .*masks/train/train00_mask.png"),
        (
            lambda root: (root / "masks/val/val00.png").unlink(),
            "validation image images/val/val00.jpg has no mask",
        ),
        (
            lambda root: (root / "images/train/gone.jpg").symlink_to(root / "nowhere.jpg"),
            "gone.jpg is a link to a file that is not there",
        ),
        (
            _mask("train/train02.jpg", 34, 44),
            "masks/train/train02.jpg in .* is no PNG; save masks as PNG",
        ),
        *(
            (
                _photo(*size),
                rf"val00.jpg cannot be used: image of {size[0]}×{size[1]} pixels: .* cut",
            )
            for size in ((1, 1), (1, 2000), (5000, 40), (2, 600))
        ),
        (_shared_mask, "would both have the mask masks/both.png; put masks into folders"),
        (
            lambda root: (root / "images/train/train01.jpg").rename(
                root / "images/train/\udce4.jpg"
            ),
            r"file name b'.*\\xe4.jpg' is no UTF-8 text; rename the file",
        ),
        (
            lambda root: write_pair(root, "train/train00", rng=RNG, suffix=".png", mask=False),
            "would have the same id 'train00'; rename one",
        ),
        (_text("classes.txt", "\n"), "names no class"),
        (_text("val.txt", "x\n"), "in one way, either .*and val.txt"),
    ],
)
def test_bad_folders_are_named(folder, damage, sentence):
    damage(folder)
    with pytest.raises(ValueError, match=sentence):
        prepared(folder)
    assert not list(folder.parent.glob("prepared/**/incomplete.*"))
    assert not list(folder.parent.glob("prepared/**/metadata.json"))


def test_missing_folders(tmp_path):
    with pytest.raises(ValueError, match=r"config.data.folder is '.*nowhere', which is no folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no folder images/"):
        scan(tmp_path)


def test_label_map_text():
    assert parse_label_map("", num_classes=3) == {}
    assert parse_label_map("11:255, 12 : 3", num_classes=3) == {11: 255, 12: 3}
    assert parse_label_map("n:255", num_classes=11) == {11: 255}
    for text in ("11", "11:256", "a:b", "1:2:3", "255:n"):
        with pytest.raises(ValueError, match="write OLD:NEW"):
            parse_label_map(text, num_classes=3)
    for text in ("1:2,1:3", "n:1,3:2"):
        with pytest.raises(ValueError, match=r"maps the value \d twice"):
            parse_label_map(text, num_classes=3)


def test_label_map_must_lead_to_a_class(folder):
    with pytest.raises(ValueError, match=r"maps 11 to 77, but the classes of .* are 0 to 2"):
        FolderSemi(folder, label_map="11:77", data_dir=folder.parent)


def test_photos_are_turned_upright_before_sizes_are_compared(tmp_path):
    root = make_folder(tmp_path / "photos", masks=1, without=1, validation=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    pixels = RNG.integers(0, 256, (30, 24, 3), dtype=np.uint8)  # stored lying down
    Image.fromarray(pixels).save(root / "images/train/train00.jpg", exif=exif)
    source = prepared(root)  # its mask is 24 rows of 30
    assert images.decode_image(source[0].image).shape == (24, 30, 3)
    Image.fromarray(np.zeros((30, 24), np.uint8)).save(root / "masks/train/train00.png")
    with pytest.raises(ValueError, match=r"train00.png of 24×30 pixels fits its photo only as it"):
        prepared(root)


@pytest.mark.parametrize("name", ["classes.txt", "labelmap.txt"])
def test_colour_masks(tmp_path, name):
    root = make_folder(tmp_path / "photos", masks=2, without=0, validation=1)
    (root / "classes.txt").unlink()
    hexadecimal = "sky #000000\nroad: street #800000\n__ignore__ #ffffff\n"
    cvat = (
        "# label:color_rgb:parts:actions\nsky:0,0,0::\nroad:128,0,0::\n__ignore__:255,255,255::\n"
    )
    (root / name).write_text(hexadecimal if name == "classes.txt" else cvat)
    colours = np.array([[0, 0, 0], [128, 0, 0], [255, 255, 255]], np.uint8)
    stored = []
    for path in sorted(root.glob("masks/*/*.png")):
        values = np.asarray(Image.open(path))
        stored.append(values)
        painted = Image.fromarray(colours[np.where(values == 255, 2, values)])
        path.unlink()
        painted.save(path.with_suffix(".tif" if "01" in path.stem else ".png"))
    source = prepared(root)
    assert source.info.palette.tolist() == colours[:2].tolist()
    for index in range(2):
        np.testing.assert_array_equal(label_files.decode_label(source[index].label), stored[index])
    path = root / "masks/train/train00.png"
    Image.fromarray(np.full((24, 30, 3), 7, np.uint8)).save(path)
    with pytest.raises(
        ValueError, match=r"train00.png cannot be used: .*the colour #070707 \(100 %"
    ):
        prepared(root)
