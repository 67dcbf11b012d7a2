"""The benchmark on real photos: plan and tables with faked scores, small models on photos."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import gain_table, real_photos, trained_models, workload
from semivl_jax.config import drop_other_fields, validate
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.inference.load import Model
from tests import served
from tests.photos import CLASSES, make_folder

INFO = DatasetInfo(name="photos", classes=CLASSES, definitions=tuple((name,) for name in CLASSES))


def plan(out, **options):
    """Two folders that need not exist: 1/16 with two seeds, 1/8 and all with one."""
    given = {"methods": "unimatch,fixmatch", "rates": "0.3,1", "steps": "64", **options}
    parsed = real_photos.parser().parse_args(
        ["--data=-", f"--out={out}", *(f"--{key}={value}" for key, value in given.items())]
    )
    source = "configs/folder.py:/photos"
    settings = [
        real_photos.Setting(data, source, split, labelled, seeds)
        for data in ("camvid", "facade")
        for split, labelled, seeds in (("1_16", 23, (0, 1)), ("1_8", 46, (0,)), ("all", 367, (0,)))
    ]
    configs = dict.fromkeys(("camvid", "facade"), workload.load_config(source))
    return real_photos.Plan(parsed, settings, configs)


def finish(run, best, last=None):
    run.workdir.mkdir(parents=True)
    scores = {"best": best, "last": best - 1 if last is None else last}
    (run.workdir / "finished.json").write_text(json.dumps(scores))


def test_every_run_is_a_valid_configuration_of_the_same_length(tmp_path):
    made = plan(tmp_path)
    for run in made.trials():
        finish(run, best=run.fields["optim.lr"])
    runs = [run for row in made.rows() for run in row.runs]
    assert len({run.workdir for run in runs}) == len(runs) == 2 * (3 * 2 + 3 + 1)
    for run in runs:
        config = workload.load_config(run.config, [f"{k}={v!r}" for k, v in run.fields.items()])
        drop_other_fields(config)
        validate(config)
        assert config.steps == 64 and 64 % config.evaluation.every_steps == 0
        # The larger rate had the higher score.
        assert config.optim.lr == workload.load_config(run.config).optim.lr


def test_tables_of_what_is_finished(tmp_path):
    made = plan(tmp_path)
    slow, fast, *of_facade = made.trials()
    assert [run.fields["data.split"] for run in of_facade] == ["1_16", "1_16"]
    finish(fast, best=38.0)
    found = real_photos.entries(made)
    assert all(entry["method"] != "supervised" for entry in found), "the rate is not chosen yet"
    finish(slow, best=40.0, last=30.0)
    rows = {(row.setting.data, row.setting.split, row.method): row for row in made.rows()}
    finish(rows["camvid", "1_16", "supervised"].runs[1], best=42.0, last=32.0)
    finish(rows["camvid", "1_16", "unimatch"].runs[0], best=44.0)
    finish(rows["camvid", "1_16", "unimatch"].runs[1], best=45.0)
    finish(rows["camvid", "1_8", "unimatch"].runs[0], best=50.0)
    finish(rows["camvid", "1_8", "supervised"].runs[0], best=51.0)
    for row, score in (("supervised", 35.0), ("unimatch", 37.5)):
        workdir = rows["camvid", "1_16", row].runs[0].workdir
        (workdir / "test.json").write_text(json.dumps({"folder": "t", "miou": score}))
    real_photos.write(made)
    lines = (tmp_path / "real_photos.md").read_text().splitlines()
    assert (
        "| camvid | 23 (1/16) | labelled only, lr 9e-05 | 2 | 41.0 ± 1.4 | 31.0 ± 1.4 | – | 35.0 | – |"
        in lines
    )
    assert (
        "| camvid | 23 (1/16) | unimatch | 2 | 44.5 ± 0.7 | 43.5 ± 0.7 | +3.5 | 37.5 | +2.5 |"
        in lines
    )
    assert "| camvid | 46 (1/8) | unimatch | 1 | 50.0 | 49.0 | -1.0 | – | – |" in lines
    assert "| facade | 23 (1/16) | fixmatch | 0 | – | – | – | – | – |" in lines
    assert "| unimatch | 2 | +1.2 | -1.0 | +2.5 | +2.5 |" in lines
    written = json.loads((tmp_path / "real_photos.json").read_text())
    assert written[0]["best"] == [40.0, 42.0] and written[0]["test"] == [35.0, None]


def test_gains_are_of_the_seeds_that_both_have(tmp_path):
    made = plan(tmp_path)
    for run in made.trials():
        finish(run, best=40.0)
    row = next(row for row in made.rows() if row.method == "fixmatch")
    finish(row.runs[0], best=41.0)
    finish(row.runs[1], best=90.0)  # labelled only has no second seed yet
    entries = real_photos.entries(made)
    entry = next(e for e in entries if e["method"] == "fixmatch")
    assert gain_table.gain(entries, entry, "best") == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--data=camvid"], "--data has 'camvid'; write NAME=VALUE"),
     (["--data=a=/x", "--test=b=/y"], "--test names 'b', which --data does not"),
     (["--data=a=/x", "--seeds=0,one"], "--seeds '0,one' is not numbers between commas"),
     (["--data=a=/no/folder", "--config=configs/tiny.py:FOLDER"], "/no/folder"),
     (["--data=a=/x", "--picture=a.gif"], "--picture=a.gif must end with .png or .jpg"),
     (["--data=a=/x", "--jobs=0"], "--jobs 0 must be 1 or more")],
)  # fmt: skip
def test_errors_are_one_sentence(options, message, tmp_path, capsys):
    assert real_photos.main([*options, f"--out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_another_length_are_not_mixed(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    folder = make_folder(tmp_path / "photos")
    before = {
        "config": "configs/tiny.py:FOLDER",
        "steps": 50,
        "set": [f"data.directory={tmp_path}"],
    }
    (tmp_path / "out" / "settings.json").write_text(json.dumps(before))
    options = [f"--data=a={folder}", "--config=configs/tiny.py:FOLDER", "--splits=1_2", "--steps=2"]
    options += [f"--out={tmp_path / 'out'}", f"--set=data.directory={tmp_path}"]
    assert real_photos.main(options) == 2
    assert "have --steps=50, now it is 2" in capsys.readouterr().err


def test_test_photos_are_scored_once_and_need_no_training_photos(tmp_path, monkeypatch, capsys):
    folder, workdir = make_folder(tmp_path / "photos", validation=3), tmp_path / "run"
    shutil.rmtree(folder / "images" / "train")
    ground = np.zeros(2)
    for number, mask in enumerate(sorted((folder / "masks" / "val").iterdir())):
        label = np.asarray(Image.open(mask)).copy()
        label[: 3 * number] = 3  # the value after the last class
        ground += (label == 0).sum(), (label != 3).sum()
        Image.fromarray(label).save(mask)

    def network(variables, windows):
        return jax.nn.one_hot(jnp.zeros(windows.shape[:3], int), 3)  # ground everywhere

    window = SlidingWindow(mode="zegclip_sliding_window", crop=32, stride=24)
    model = Model(info=INFO, network=network, variables={}, window=window)
    evaluator = Evaluator(network, window, num_classes=3)
    monkeypatch.setattr(trained_models, "_open", lambda workdir: (model, evaluator))
    for _ in range(2):
        trained_models.score([workdir], folder, label_map="n:255")
    assert capsys.readouterr().out.count("on 3 photos") == 1
    written = json.loads((workdir / "test.json").read_text())
    expected = 100 * ground[0] / ground[1]
    assert written["iou"] == pytest.approx({"ground": expected, "disc": 0, "box": 0})
    assert trained_models.read_score(workdir) == pytest.approx(expected / 3)
    with pytest.raises(ValueError, match=r"photo_01.*value 3"):
        trained_models.score([workdir], folder.rename(folder.with_name("other")), label_map="")


def test_picture_has_a_row_for_each_photo(tmp_path):
    workdir = tmp_path / "run"
    served.make(workdir / "serving", info=INFO)
    config = served.config(data__dataset="folder", data__split="all", data__workers=0)
    config.data.folder = str(make_folder(tmp_path / "photos", validation=3))
    config.data.directory, config.compilation_cache = str(tmp_path / "data"), ""
    (workdir / "config.json").write_text(config.to_json())
    trained_models.draw({"unimatch": workdir}, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        # Photos of 48 x 40 are magnified to 240 x 200: three rows, three columns.
        assert picture.width >= 3 * 240 and picture.height >= 3 * 200
        sheet = np.asarray(picture)
    for left in (20 + 254, 20 + 2 * 254):  # truth and prediction show class colours only
        colours = np.unique(sheet[48:248, left : left + 240].reshape(-1, 3), axis=0)
        assert 1 < len(colours) <= 3 and set(map(tuple, colours)) <= set(map(tuple, INFO.palette))
