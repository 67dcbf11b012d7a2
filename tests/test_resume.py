"""A run that is killed and started again is the run that was never killed."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from semivl_jax.evaluation.confusion import iou
from semivl_jax.reporting import read
from tests.command import ROOT, command, environment, run
from tests.photos import make_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    make_folder(root / "photos")
    return root


def options(place: Path, name: str, *more: str) -> list[str]:
    return [
        f"--config=configs/tiny.py:{place / 'photos'}",
        f"--workdir={place / name}",
        f"--config.data.directory={place / 'prepared'}",
        "--config.compilation_cache=",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(place):
    """Eight steps without interruption; its compiled programs serve the other runs."""
    finished = run(*options(place, "whole"), cache=place / "cache")
    assert finished.returncode == 0, finished.stdout
    return place / "whole"


def last_state(workdir: Path, step: int = 8) -> dict:
    """Every array of the checkpoint after a step, by name, on one device."""
    folder = (workdir / "checkpoints" / str(step) / "state").absolute()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            checkpointer.metadata(folder).item_metadata.tree,
        )
        tree = checkpointer.restore(folder, like)
    leaves = {}

    def visit(node, path):
        if isinstance(node, dict):
            for name, child in node.items():
                visit(child, f"{path}/{name}")
        elif isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                visit(child, f"{path}/{index}")
        elif node is not None:
            leaves[path] = np.asarray(node)

    visit(tree, "")
    return leaves


def losses(workdir: Path) -> dict:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def assert_same_run(one: Path, other: Path) -> None:
    before, after = last_state(one), last_state(other)
    assert before.keys() == after.keys()
    assert {"/step", "/skipped"} < before.keys()
    assert any(name.startswith("/ema/") for name in before)
    assert any(name.startswith("/opt_state/") for name in before)
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[name], err_msg=name)
    common = losses(one).keys() & losses(other).keys()
    assert 8 in common
    for step in common:
        assert losses(one)[step] == losses(other)[step]


def wait_for(condition, process, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def start(place, name, *more):
    return subprocess.Popen(
        command(*options(place, name, *more)),
        cwd=ROOT,
        env=environment(place / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_and_resumed_run_is_bitwise_the_same(place, whole):
    process = start(place, "killed")
    wait_for((place / "killed" / "checkpoints" / "4").is_dir, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # Other loading must not matter: the resumed run uses a worker process.
    resumed = run(*options(place, "killed", "--config.data.workers=1"), cache=place / "cache")
    assert resumed.returncode == 0, resumed.stdout
    assert "going on at step" in resumed.stdout
    assert_same_run(whole, place / "killed")
    found, expected = read.load(place / "killed"), read.load(whole).evaluations[-1]
    assert [record.step for record in found.evaluations] == [4, 8]
    assert [session["outcome"] for session in found.sessions] == ["killed", "finished"]
    np.testing.assert_array_equal(found.evaluations[-1].average, expected.average)
    np.testing.assert_array_equal(found.evaluations[-1].pseudo, expected.pseudo)


def test_sigterm_saves_and_says_how_to_go_on(place, whole):
    """The second start reads the training step that the first one kept, with the same result."""
    own = ["--config.checkpoint.every=1000", f"--config.compilation_cache={place / 'own'}"]
    process = start(place, "stopped", *own)
    wait_for(lambda: '"train/loss"' in _text(place / "stopped" / "metrics.jsonl"), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    assert "compiled or read in" in output
    resumed = run(*options(place, "stopped", *own), cache=place / "cache")
    assert resumed.returncode == 0, resumed.stdout
    assert re.search(
        r"^training step: gradients read in [^,;]*, update read in", resumed.stdout, re.MULTILINE
    )
    assert_same_run(whole, place / "stopped")


def test_a_finished_run_says_so_and_changes_nothing(place, whole):
    again = run(*options(place, "whole"), cache=place / "cache")
    assert again.returncode == 0, again.stdout
    assert "finished after 8 steps" in again.stdout


def test_the_best_weights_are_evaluated_without_their_run(place, whole):
    served = options(place, "evaluated", f"--config.model.checkpoint={whole / 'serving'}")
    done = run(*served, "--mode=evaluate", cache=place / "cache")
    assert done.returncode == 0, done.stdout
    assert f"starting from {whole / 'serving'}" in done.stdout
    scores = json.loads((place / "evaluated" / "evaluation.json").read_text())
    metrics = json.loads((whole / "serving" / "metrics.json").read_text())
    assert scores["step"] == 0 and "eval/miou_ema" not in scores
    assert scores["eval/miou"] == metrics["eval/miou_ema"]
    assert list((place / "evaluated" / "pictures").rglob("*.png"))


def test_what_a_run_leaves_behind(whole):
    for name in ("config.json", "metrics.jsonl", "tensorboard", "pictures", "checkpoints", "run.json",
                 "evaluations", "samples", "report.html"):  # fmt: skip
        assert (whole / name).exists(), name
    assert {path.name for path in (whole / "serving").iterdir()} == {
        "model.safetensors", "text.safetensors", "text_tower.safetensors", "classes.json",
        "config.json", "metrics.json"
    }  # fmt: skip
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    trained = {key for line in lines if "train/loss" in line for key in line}
    for name in ("loss", "loss_x", "loss_s1", "loss_s2", "loss_fp", "guidance_s1", "guidance_fp",
                 "confident", "lr_backbone", "lr_decoder", "images_per_s"):  # fmt: skip
        assert f"train/{name}" in trained
    evaluated = [line for line in lines if "eval/miou" in line]
    assert [line["step"] for line in evaluated] == [4, 8]
    assert {"eval/miou_ema", "eval/iou/ground", "eval/iou/disc", "eval/iou/box"} <= evaluated[
        0
    ].keys()
    assert {"eval/pseudo_labelled", "eval/guidance_labelled"} <= evaluated[0].keys()
    assert len(list((whole / "pictures").rglob("*.png"))) == 2


def test_the_record_of_an_evaluation_is_what_was_printed(whole):
    found = read.load(whole)
    newest = found.evaluations[-1]
    assert found.curves["eval/miou_ema"][1][-1] == iou(newest.average).mean()
    assert found.curves["eval/miou"][1][-1] == iou(newest.student).mean()
    shown = np.trace(newest.guidance) / max(newest.guidance[:, :-1].sum(), 1)
    assert newest.guidance[:, -1].sum() and 0 <= shown <= 1
    assert set(newest.image_iou) == {"photo_00", "photo_01"}
    (session,) = found.sessions
    assert (session["outcome"], session["last_step"]) == ("finished", 8)


def test_evaluate_mode_repeats_the_last_score(place, whole):
    before = (whole / "metrics.jsonl").read_text()
    result = run(*options(place, "whole", "--mode=evaluate"), cache=place / "cache")
    assert result.returncode == 0, result.stdout
    assert (whole / "metrics.jsonl").read_text() == before
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval/miou" in line][-1]
    scores = json.loads((whole / "evaluation.json").read_text())
    assert scores["eval/miou_ema"] == last["eval/miou_ema"]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
