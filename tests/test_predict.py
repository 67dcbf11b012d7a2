"""The command as users type it: files in, files out, and everything that can be wrong with them."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semivl_jax import predict
from semivl_jax.inference import files as files_lib
from tests import served
from tests.inference.test_segmenter import photo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served.make(tmp_path_factory.mktemp("run") / "serving").parent


@pytest.fixture
def photos(tmp_path):
    """Five images in folders, two of one name."""
    folder = tmp_path / "photos"
    for i, name in enumerate(["a.png", "a.bmp", "b/a.jpg", "b/C.webp", "b/c.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(seed=i)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(model, images, out, *more):
    options = ["--out", str(out), "--text_cache=", "--compilation_cache=", *more]
    return predict.main(["--model", str(model), "--images", *map(str, images), *options])


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_masks_overlays_scores_and_classes(model, photos, tmp_path, capsys):
    assert run(model, [photos], tmp_path / "out", "--save_scores") == 0
    names = ["a.bmp", "a.png", "b/C.webp", "b/a", "b/c.png"]
    expected = [f"{kind}/{name}{suffix}"
                for kind, suffix in (("masks", ".png"), ("overlays", ".jpg"), ("scores", ".npz"))
                for name in names]  # fmt: skip
    assert files(tmp_path / "out") == sorted([*expected, "classes.json"])
    with np.load(tmp_path / "out/scores/b/a.npz") as saved:
        assert saved["names"].tolist() == list(served.INFO.classes)
        assert saved["scores"].dtype == np.float32 and saved["scores"].shape == (40, 48, 3)
        mask = np.asarray(Image.open(tmp_path / "out/masks/b/a.png"))
        np.testing.assert_array_equal(mask, saved["scores"].argmax(-1))
    facts = json.loads((tmp_path / "out/classes.json").read_text())
    assert facts["names"] == list(served.INFO.classes)
    assert facts["palette"] == served.INFO.palette.tolist()
    assert facts["images"]["b/a"] == str(photos / "b/a.jpg")
    printed = capsys.readouterr()
    assert re.search(r"5 images in \d+\.\d s \(\d+\.\d\d images/s", printed.out)
    assert printed.err == ""  # no progress bar in a pipe


def test_unreadable_files_are_listed_and_the_others_segmented(model, photos, tmp_path, capsys):
    (photos / "b" / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (photos / "empty.png").touch()
    assert run(model, [photos], tmp_path / "out") == 1
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 5
    printed = capsys.readouterr()
    assert printed.out.startswith("5 images in")
    assert "2 images could not be read:" in printed.err
    assert (
        f"{photos}/b/broken.jpg: " in printed.err and f"{photos}/empty.png: 0 bytes" in printed.err
    )


def test_results_that_are_there(model, photos, tmp_path, capsys):
    image, out = photos / "b" / "a.jpg", tmp_path / "out"
    assert run(model, [image], out) == 0
    assert run(model, [image], out) == 2
    assert "holds predictions already (1 of these 1 images)" in capsys.readouterr().err
    before = (out / "masks/a.png").stat().st_mtime_ns
    assert run(model, [image], out, "--existing=skip") == 0
    assert (
        "0 images in" in (printed := capsys.readouterr().out) and "1 were there already" in printed
    )
    assert (out / "masks/a.png").stat().st_mtime_ns == before
    other = tmp_path / "a.jpg"
    other.write_bytes(image.read_bytes())
    assert run(model, [other], out, "--existing=skip") == 2
    assert f"masks/a.png is about {image}, not {other}" in capsys.readouterr().err
    assert run(model, [image], out, "--existing=skip", "--classes", "disc,sky") == 2
    assert "is about other classes, so its masks mean something else" in capsys.readouterr().err
    assert run(model, [image], out, "--existing=replace", "--classes", "disc,sky") == 0
    assert json.loads((out / "classes.json").read_text())["names"] == ["disc", "sky"]
    assert (out / "masks/a.png").stat().st_mtime_ns > before


def test_masks_that_no_prediction_made_are_kept(model, photos, tmp_path, capsys):
    own = tmp_path / "masks/a.png"
    own.parent.mkdir()
    own.write_text("drawn by hand")
    assert run(model, [photos / "b" / "a.jpg"], tmp_path, "--existing=replace") == 2
    assert f"{own} may be a mask of yours" in capsys.readouterr().err
    assert own.read_text() == "drawn by hand"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": ["nowhere.jpg"]}, "--images nowhere.jpg: no such file or folder"),
        ({"images": ["*.tga"]}, "--images *.tga finds no image"),
        ({"model": "nowhere"}, "nowhere holds no model; name the working directory"),
        ({"more": ["--classes=a,a"]}, "names the class 'a' twice"),
    ],
)
def test_errors_are_one_sentence(model, photos, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = {"model": model, "images": [photos], "more": [], **arguments}
    assert run(given["model"], given["images"], tmp_path / "out", *given["more"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def found(patterns, out="out"):
    return files_lib.find_images([str(p) for p in patterns], without=Path(out))[0]


def test_images_by_folder_pattern_and_file_each_once(photos):
    def named(*patterns):
        return [(str(f.path.relative_to(photos)), f.name) for f in found(patterns)]

    assert named(photos) == [
        ("a.bmp", "a.bmp"), ("a.png", "a.png"), ("b/C.webp", "b/C.webp"), ("b/a.jpg", "b/a"),
        ("b/c.png", "b/c.png")]  # fmt: skip
    assert named(photos / "*" / "*.jpg", photos / "b" / "a.jpg", photos / "b") == [
        ("b/a.jpg", "b/a"), ("b/C.webp", "C.webp"), ("b/c.png", "c.png")]  # fmt: skip
    assert named(photos / "**" / "c*") == [("b/c.png", "b/c")]


def test_results_inside_an_image_folder_are_no_images(photos):
    out = photos / "out"
    (out / "masks").mkdir(parents=True)
    Image.fromarray(photo()).save(out / "masks" / "a.png")
    assert len(found([photos], out)) == 5
    assert len(found([photos / "**" / "*.png"], out)) == 2


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.png", "b/a.png"], ["a", "b/a"]),
        (["a.png", "a.jpg", "A.JPG"], ["a.png", "a.jpg", "A.JPG-2"]),
        (["x.png", "x.png", "x.png-2.png"], ["x.png", "x.png-2", "x.png-2-2"]),
    ],
)
def test_names_are_unique_on_every_disk(paths, names):
    assert files_lib._unique_names([Path(path) for path in paths]) == names


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(model, photos, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert run(model, [photos], tmp_path / "out") == 2
    assert "Permission denied" in capsys.readouterr().err


FORMATS = {
    "png": {}, "jpg": {"format": "JPEG"}, "webp": {}, "bmp": {}, "tiff": {"compression": "tiff_lzw"},
    "gif": {}, "tga": {}, "jp2": {"format": "JPEG2000"},
}  # fmt: skip


def _damaged(rng, content):
    """A file cut short or with up to eight flipped bits."""
    if rng.random() < 0.5:
        return content[: rng.integers(0, len(content))]
    data = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
    return bytes(data)


def test_two_hundred_damaged_images_end_in_results_or_sentences(model, tmp_path, capfd):
    rng = np.random.default_rng(0)
    folder = tmp_path / "damaged"
    folder.mkdir()
    images = [Image.fromarray(photo((12, 14), seed)) for seed in range(3)]
    for i in range(200):
        suffix = sorted(FORMATS)[i % len(FORMATS)]
        content = io.BytesIO()
        options = {"format": suffix.upper(), **FORMATS[suffix]}
        images[i % 3].save(content, **options)
        (folder / f"{i:03d}.{suffix}").write_bytes(_damaged(rng, content.getvalue()))
    pattern = folder / "*"
    code = run(model, [pattern], tmp_path / "out", "--batch=8")
    error = capfd.readouterr().err
    assert code == 1 and "Traceback" not in error and "Warning" not in error
    listed = set(re.findall(rf"{folder}/(\d+)\.\w+: ", error))
    done = {path.stem for path in (tmp_path / "out/masks").iterdir()}
    assert listed | done == {f"{i:03d}" for i in range(200)} and not listed & done
    assert len(listed) > 60 and len(done) > 10
