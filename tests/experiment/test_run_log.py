"""The run log: sessions over kills and resumptions, evaluations of a resumed run."""

import json
import shlex

import numpy as np
import pytest

from semivl_jax.experiment import run_log
from tests.command import ROOT


def test_sessions_continue_and_a_killed_one_is_closed(tmp_path, monkeypatch):
    arguments = ["--config=configs/folder.py:/my photos", "--config.steps=6"]
    monkeypatch.setattr("sys.argv", [str(ROOT / "semivl_jax" / "main.py"), *arguments])
    log, metadata = run_log.RunLog(tmp_path), {"classes": ["a"]}
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"step": 6}\n{"st')
    killed = {"started": "2026-01-02T03:04:05+00:00", "first_step": 0, "outcome": "running"}
    (tmp_path / "run.json").write_text(json.dumps({**metadata, "sessions": [killed]}))
    with pytest.raises(ValueError), log.session(metadata, first_step=4):
        raise ValueError
    with log.session(metadata, first_step=6):
        during = json.loads((tmp_path / "run.json").read_text())["sessions"]
        assert [s["outcome"] for s in during] == ["killed", "failed", "running"]
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert [s["outcome"] for s in sessions] == ["killed", "failed", "finished"]
    assert [s["last_step"] for s in sessions] == [6, 6, 6]
    command = shlex.split(sessions[2]["command"])
    assert command == ["python", "-m", "semivl_jax.main", *arguments]
    assert sessions[2]["devices"]["platform"] == "cpu" and sessions[2]["versions"]["jax"]


def test_a_folder_with_other_images_of_the_same_names_is_refused(tmp_path):
    log = run_log.RunLog(tmp_path)
    metadata = {
        "classes": ["a", "b"],
        "images": {"labelled": 1, "unlabelled": 2, "validation": 1},
        "balance": {"labelled": {"pixels": [9, 1], "images": [1, 1]}},
    }
    for _ in range(2):
        with log.session(metadata, first_step=0):
            pass
    for changed, what in (
        ({"balance": {"labelled": {"pixels": [8, 2], "images": [1, 1]}}}, "masks"),
        ({"images": {**metadata["images"], "validation": 2}}, "numbers of images"),
        ({"classes": ["b", "a"]}, "classes"),
    ):
        message = f"the {what} of the data set are not those that the run began with"
        with (
            pytest.raises(ValueError, match=message),
            log.session({**metadata, **changed}, first_step=0),
        ):
            pass


def test_evaluations_that_will_be_repeated_are_discarded(tmp_path):
    log = run_log.RunLog(tmp_path)
    for step in (4, 8, 12):
        counts = {"student": np.eye(2, dtype=np.int64)}
        log.write_evaluation(step, confusion=counts, labels={}, image_iou={"a": 50.0})
    log.discard_evaluations_after(8)
    kept = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert kept == ["0000004.npz", "0000008.npz"]
