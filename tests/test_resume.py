"""A run that is stopped or killed and resumed equals the uninterrupted run bitwise."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from semivl_jax import buckets, report
from semivl_jax.evaluation.confusion import iou
from semivl_jax.experiment import lock
from semivl_jax.inference import bundle
from semivl_jax.reporting import read
from tests import gcs
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
        "--config.text.cache=",  # another version of JAX may have written the user's
        *more,
    ]


@pytest.fixture(scope="module")
def whole(place):
    """Eight steps without interruption; the other runs use its compiled programs."""
    finished = run(*options(place, "whole"))
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
    assert any(name.startswith("/ema_params/") for name in before)
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
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_stopped_killed_and_resumed_run_is_bitwise_the_same(place, whole):
    workdir = place / "resumed"
    process = start(place, "resumed", "--config.checkpoint.every=1000")
    wait_for(lambda: '"train/loss"' in _text(workdir / "metrics.jsonl"), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM; the state is saved" in output
    assert "Traceback" not in output
    saved = newest_checkpoint(workdir)
    process = start(place, "resumed")
    wait_for(lambda: newest_checkpoint(workdir) > saved, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # A damaged checkpoint costs the steps since the one before.
    newest = workdir / "checkpoints" / str(newest_checkpoint(workdir))
    path = next(path for path in (newest / "state" / "ocdbt.process_0" / "d").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    # The last part loads data in a worker process.
    done = run(*options(place, "resumed", "--config.data.workers=1"))
    assert done.returncode == 0, done.stdout
    assert f"warning: {path} is damaged" in done.stdout
    before = re.search(r"the run goes on from the checkpoint of step (\d+)", done.stdout)[1]
    assert f"going on at step {before} of 8" in done.stdout
    assert int(before) < int(newest.name)
    assert_same_run(whole, workdir)
    found, expected = read.load(workdir), read.load(whole).evaluations[-1]
    assert [evaluation.step for evaluation in found.evaluations] == [4, 8]
    outcomes = [session["outcome"] for session in found.sessions]
    assert outcomes == ["stopped", "killed", "finished"]
    newest = found.evaluations[-1]
    for counts in ("confusion", "labels"):
        ours, theirs = getattr(newest, counts), getattr(expected, counts)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_and_goes_on_elsewhere(place, whole, monkeypatch):
    """Bitwise as the run in a folder; then the bucket is read by the report and for prediction."""
    with gcs.emulator(monkeypatch) as bucket:
        url, data = f"{bucket}/runs/demo", f"--config.data.directory={bucket}/data"
        monkeypatch.setenv("HOME", str(place / "first"))
        process = start(place, "", f"--workdir={url}", data)
        done = re.compile(r"checkpoints/\d+/commit_success.txt")
        wait_for(lambda: any(map(done.fullmatch, buckets.Folder(url).files())), process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        (place / "first").rename(place / "gone")
        monkeypatch.setenv("HOME", str(place / "second"))
        resumed = run(
            *options(place, "", f"--workdir={url}", data),
        )
        assert resumed.returncode == 0, resumed.stdout
        assert re.search(r"going on at step [24] of 8", resumed.stdout)
        assert (
            f"copying {bucket}/data/photos-" in resumed.stdout and "preparing" not in resumed.stdout
        )
        assert f"best model:  {url}/serving" in resumed.stdout
        copy = buckets.fetch(url, lambda name: True)
        served = bundle.load(url)
        assert report.main([url, "--out", str(place / "report.html")]) == 0
    assert_same_run(whole, copy)
    assert losses(copy).items() >= losses(whole).items()  # and the first step after resuming
    found = read.load(copy)
    assert [evaluation.step for evaluation in found.evaluations] == [4, 8]
    assert [session["outcome"] for session in found.sessions] == ["killed", "finished"]
    assert served.metrics == bundle.load(whole).metrics
    assert len((place / "report.html").read_text()) > 10_000
    folders = {path.name for path in copy.iterdir()}
    assert folders == {path.name for path in whole.iterdir() if path.name != "lock"}


def newest_checkpoint(workdir: Path) -> int:
    folders = (workdir / "checkpoints").glob("*")
    return max((int(path.name) for path in folders if path.name.isdigit()), default=0)


def test_a_finished_run_says_so_and_changes_nothing(place, whole):
    before = (whole / "metrics.jsonl").read_text()
    again = run(*options(place, "whole"))
    assert again.returncode == 0, again.stdout
    assert "finished after 8 steps" in again.stdout
    assert again.stdout.count("warning:     Few pseudo-labels: at step 8: 0.0 %") == 1
    assert (whole / "metrics.jsonl").read_text() == before


def test_evaluate_mode_repeats_the_last_score(place, whole):
    """Also after the images moved to another folder, and beside a process that trains."""
    before = (whole / "metrics.jsonl").read_text()
    moved = shutil.copytree(place / "photos", place / "moved" / "photos")
    named = ["--mode=evaluate", f"--config.data.folder={moved}"]
    drawn = (whole / "samples").stat()
    with lock.one_writer(whole):
        result = run(*options(place, "whole", *named))
    assert result.returncode == 0, result.stdout
    assert "pictures and samples stay its own" in result.stdout
    assert os.path.samestat((whole / "samples").stat(), drawn)
    assert (whole / "metrics.jsonl").read_text() == before
    scores = json.loads((whole / "evaluation.json").read_text())
    assert scores["eval/miou_ema"] == read.load(whole).curves["eval/miou_ema"][1][-1]


def test_the_best_weights_are_evaluated_without_their_run(place, whole):
    served = options(place, "evaluated", f"--config.model.checkpoint={whole / 'serving'}")
    done = run(*served, "--mode=evaluate")
    assert done.returncode == 0, done.stdout
    assert f"starting from {whole / 'serving'}" in done.stdout
    scores = json.loads((place / "evaluated" / "evaluation.json").read_text())
    metrics = json.loads((whole / "serving" / "metrics.json").read_text())
    assert scores["step"] == 0 and "eval/miou_ema" not in scores
    assert scores["eval/miou"] == metrics["eval/miou_ema"]
    assert list((place / "evaluated" / "pictures").rglob("*.png"))


def test_files_and_metrics_of_a_run(whole):
    for name in ("config.json", "tensorboard", "checkpoints", "samples", "report.html"):
        assert (whole / name).exists(), name
    assert {path.name for path in (whole / "serving").iterdir()} == {
        "model.safetensors", "text.safetensors", "text_tower.safetensors", "classes.json",
        "config.json", "metrics.json", "SHA256SUMS"
    }  # fmt: skip
    assert len(list((whole / "pictures").rglob("*.png"))) == 2
    found = read.load(whole)
    assert found.curves["eval/miou"][0].tolist() == [4, 8]
    for name in ("loss", "loss_x", "loss_s1", "loss_s2", "loss_fp", "guidance_s1", "guidance_fp",
                 "confident", "lr_backbone", "lr_decoder", "images_per_s"):  # fmt: skip
        assert f"train/{name}" in found.curves
    for name in ("iou/ground", "iou/disc", "iou/box", "pseudo_labelled", "guidance_labelled",
                 "pseudo_drift", "predicted_drift", "predicted_share/disc"):  # fmt: skip
        assert f"eval/{name}" in found.curves
    newest = found.evaluations[-1]
    assert found.curves["eval/miou_ema"][1][-1] == iou(newest.confusion["ema"]).mean()
    assert found.curves["eval/miou"][1][-1] == iou(newest.confusion["student"]).mean()
    assert newest.labels["guidance"][:, -1].sum()
    assert set(newest.image_iou) == {"photo_00", "photo_01"}
    (session,) = found.sessions
    assert (session["outcome"], session["last_step"]) == ("finished", 8)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
