"""Sweeps: with runs that only write scores, and with one real training."""

import json
import sys

import pytest

from semivl_jax import sweep
from tests.command import compiled_quickly
from tests.photos import make_folder

SCRIPT = """
import json, pathlib, sys
folder, code = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with (folder.parent / "started.txt").open("a") as file:
    file.write(folder.name + "\\n")
(folder / "config.json").write_text("{}")
lines = [{"step": s, "eval/miou": 1.0, "eval/miou_ema": score} for s, score in ((1, 30.0), (2, 20.0))]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
sys.exit(code)
"""


class FakeRun(sweep.Run):
    def command(self):
        return [sys.executable, "-c", SCRIPT, str(self.workdir), str(self.fields["code"])]


def fake(folder, name, code=0):
    return FakeRun(name=name, config="configs/voc.py", workdir=folder / name, fields={"code": code})


def test_finished_runs_are_skipped_and_a_failure_stops_no_other(tmp_path, capsys):
    runs = [fake(tmp_path, "a"), fake(tmp_path, "b", code=3), fake(tmp_path, "c")]
    finished = []
    assert sweep.run_all(runs, finished=lambda: finished.append(runs[0].result())) == [runs[1]]
    assert finished == [runs[0].result()] * 2
    printed = capsys.readouterr().out
    assert f"b: failed with exit code 3; see {runs[1].workdir / 'log.txt'}" in printed
    assert runs[0].result() == sweep.Result(best=30.0, last=20.0)
    assert runs[1].result() is None
    with pytest.raises(ValueError, match=r"a holds a finished run with code = 0 \(now 1\); choose"):
        sweep.run_all([fake(tmp_path, "a", code=1)])
    repaired = [runs[0], fake(tmp_path, "b"), runs[2]]
    assert sweep.run_all(repaired, jobs=2) == []
    assert (tmp_path / "started.txt").read_text().split() == ["a", "b", "c", "b"]


def test_table_has_the_published_values(tmp_path):
    for seed, best in ((0, 80.0), (1, 82.0)):
        folder = tmp_path / f"92-seed{seed}"
        folder.mkdir()
        (folder / "finished.json").write_text(json.dumps({"best": best, "last": best - 1}))
    options = sweep._parse(
        ["configs/voc.py", "--splits=92,183", "--seeds=0,1,2", f"--out={tmp_path}"]
    )
    lines = sweep.table(options.config, sweep.plan(options)).splitlines()
    assert lines[2] == "| 92 | 2 of 3 | 81.0 ± 1.4 | 80.0 ± 1.4 | 84.0 |"
    assert lines[3] == "| 183 | 0 of 3 | – | – | 85.6 |"


@pytest.mark.parametrize(
    ("config", "split", "expected"),
    [("configs/voc.py:recipe=paper", "92", 84.0), ("configs/voc.py:recipe=supervised", "92", None),
     ("configs/voc.py:92", "", 84.0),
     ("configs/voc_ablation.py:unimatch_r101", "1464", 81.2), ("configs/ade.py", "1_128", None)],
)  # fmt: skip
def test_published_values_belong_to_the_published_training_only(config, split, expected):
    assert sweep.published_values(config).get(split) == expected


def test_commands_of_a_plan():
    options = sweep._parse(
        ["configs/voc_ablation.py:clip_init", "--splits=92", "--seeds=5", "--set", "batch=16"]
    )
    command = sweep.plan(options)["92"][0].command()
    assert "--config=configs/voc_ablation.py:clip_init,split=92" in command
    assert "--workdir=runs/voc_ablation-clip_init/92-seed5" in command
    assert command[-2:] == ["--config.batch=16", "--config.seed=5"]


def test_methods_share_splits_and_seeds():
    options = sweep._parse(["configs/demo.py", "--methods=supervised,semivl", "--seeds=0,1"])
    groups = sweep.plan(options)
    assert list(groups) == ["supervised", "semivl"]
    command = groups["semivl"][1].command()
    assert "--config=configs/demo.py" in command
    assert "--workdir=runs/demo/semivl-seed1" in command
    assert command[-2:] == ["--config.method.name=semivl", "--config.seed=1"]
    options = sweep._parse(["configs/voc.py", "--methods=fixmatch", "--splits=92,183"])
    assert list(sweep.plan(options)) == ["92, fixmatch", "183, fixmatch"]


def test_errors_are_one_sentence(capsys):
    with pytest.raises(SystemExit):
        sweep.main(["configs/voc.py", "--methods=semivl,fixmach"])
    assert "--methods 'fixmach' is unknown; choose from supervised" in capsys.readouterr().err
    assert sweep.main(["configs/voc.py", "--splits=92", "--set", "batch"]) == 2
    assert "--set 'batch' is not KEY=VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.main(["configs/vok.py", "--splits=92"])
    assert "there is no file configs/vok.py" in capsys.readouterr().err


def test_a_real_training_is_run_once(tmp_path, capsys, monkeypatch):
    for name, value in compiled_quickly(devices=1).items():
        monkeypatch.setenv(name, value)
    photos, log = make_folder(tmp_path / "photos"), tmp_path / "1_2-seed3" / "log.txt"
    command = [f"configs/tiny.py:{photos}", "--splits=1_2", "--seeds=3", f"--out={tmp_path}"]
    fields = {"steps": 2, "data.directory": tmp_path / "data", "compilation_cache": ""}
    command += [f"--set={key}={value}" for key, value in fields.items()]
    assert sweep.main(command) == 0, log.read_text()
    first = capsys.readouterr().out
    assert "finished after 2 steps" in first and "finished after 2 steps" in log.read_text()
    assert (tmp_path / "report.html").exists()
    written = json.loads((tmp_path / "1_2-seed3" / "config.json").read_text())
    assert (written["data"]["split"], written["seed"], written["steps"]) == ("1_2", 3, 2)
    assert sweep.main(command) == 0
    again = capsys.readouterr().out
    assert "1_2, seed 3: already finished" in again
    assert first.splitlines()[-2:] == again.splitlines()[-2:]
    assert "| 1_2 | 1 of 1 |" in again
