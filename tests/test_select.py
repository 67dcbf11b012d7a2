"""The command that chooses what to label next, on an untrained model."""

import csv

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from semivl_jax import select
from semivl_jax.config import set_method
from semivl_jax.experiment import data as data_lib
from semivl_jax.experiment import workdir
from tests import served
from tests.photos import make_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder as training leaves it: three labelled photos, five unlabelled ones."""
    root = tmp_path_factory.mktemp("select")
    config = tiny.get_config(str(make_folder(root / "photos")))
    config.data.directory, config.data.split = str(root / "prepared"), "3"
    workdir.claim(root / "run", config)
    served.make(root / "run" / "serving")
    return root / "run"


def chosen(run, out, *options):
    code = select.main([str(run), "--compilation_cache=", "--out", str(out), *options])
    assert code == 0
    with (out / "selection.csv").open() as file:
        return list(csv.DictReader(file))


def mask_of(out, row):
    return np.asarray(Image.open(out / "masks" / f"{row['id']}.png"))


def test_images_regions_and_their_sparse_masks(run, tmp_path, capsys):
    config = workdir.read(run)
    data = data_lib.open_data(config)
    lists = data.lists()
    rows = chosen(run, tmp_path / "images", "--budget=2")
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert {row["id"] for row in rows} < set(lists["unlabelled"])
    assert all((row["height"], row["width"]) == ("40", "48") for row in rows)
    assert mask_of(tmp_path / "images", rows[0]).max() < 3
    split = (tmp_path / "images" / "split.txt").read_text().split()
    assert split == lists["labelled"] + [row["id"] for row in rows]

    out = tmp_path / "regions"
    rows = chosen(run, out, "--budget=7", "--unit=region", "--radius=3", "--per_image=2")
    assert len(rows) == 7
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    sides = [int(row[side]) for row in rows for side in ("height", "width")]
    assert max(sides) == 7 and min(sides) >= 4
    name = rows[0]["id"]
    area = sum(int(r["height"]) * int(r["width"]) for r in rows if r["id"] == name)
    assert np.count_nonzero(mask_of(out, rows[0]) != 255) == area
    assert (out / "overlays" / f"{name}.jpg").exists()

    # The masks are labels: 255 does not count in training.
    photos = make_folder(tmp_path / "photos")
    for row in rows:
        Image.fromarray(mask_of(out, row)).save(photos / "masks" / "train" / f"{row['id']}.png")
    config.data.folder, config.data.split = str(photos), str(out / "split.txt")
    config.data.directory = str(tmp_path / "prepared")
    set_method(config, "supervised")  # every image may be labelled now
    again = data_lib.open_data(config)
    assert again.lists()["labelled"] == (out / "split.txt").read_text().split()
    pixels = again.train.pixels[again.train.ids.index(name)]
    assert sum(count for value, count in pixels.items() if value != 255) == area


def test_what_is_there_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    assert select.main([str(run), "--budget=2", "--out", str(tmp_path)]) == 2
    assert "holds a selection or other files already (masks)" in capsys.readouterr().err
    assert select.main([str(tmp_path / "none"), "--budget=2"]) == 2
    assert "holds no run" in capsys.readouterr().err
