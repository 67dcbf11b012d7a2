"""The benchmark of an accelerator: a dry run with tiny models; rows that fail, die or hang end nothing."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import accelerator, accelerator_rows
from benchmarks.accelerator import Row
from tests.command import ROOT, environment

MEASURED = ("parity float32", "VOC attention=xla", "VOC evaluation", "VOC prediction")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerator")
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--out={folder}",
               f"--rows={','.join(MEASURED)},published"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_a_dry_run_holds_every_row(out):
    entries = json.loads((out / "accelerator.json").read_text())["rows"]
    table = (out / "accelerator.md").read_text()
    expected = {row.name: "not chosen" for row in accelerator.all_rows(tiny=True)}
    expected |= dict.fromkeys(MEASURED, "measured") | {"published PyTorch step": "not run"}
    assert {entry["name"]: entry["status"] for entry in entries} == expected
    assert all(name in table for name in expected)
    found = accelerator.measured(out / "accelerator.json", tiny=True)
    assert found.keys() == set(MEASURED)
    assert not accelerator.measured(out / "accelerator.json", tiny=False)
    parity = [found["parity float32"][key] for key in ("logits", "loss", "gradients")]
    assert 0 < max(parity) < 1e-4
    for name in MEASURED[2:]:
        assert found[name]["images_per_s"] > 0


def test_operations_are_known_before_a_step_runs(out, capsys):
    name = "VOC attention=xla"
    rows = [row for row in accelerator.all_rows(tiny=True) if row.name == name]
    measured = accelerator.measured(out / "accelerator.json", tiny=True)[name]
    options = {key: rows[0].options[key] for key in ("config", "changes")}
    assert accelerator_rows.operations(**options) == pytest.approx(1e12 * measured["tflop"])
    accelerator.predict(rows)
    assert f"| {name} | {measured['tflop']:.3g} |" in capsys.readouterr().out


def test_rows_that_fail_do_not_end_the_others(tmp_path):
    rows = [
        Row("dies", os._exit, {"status": 3}, 1.0),
        Row("raises", json.loads, {"s": "{"}, 1.0),
        Row("takes long", dict, {}, 1e6),
        Row("unwanted", dict, {}, 1.0),
        Row("measured before", dict, {}, 1.0),
        Row("works", dict, {"value": 1}, 1.0),
    ]
    accelerator.measure(
        rows,
        chosen={row.name for row in rows} - {"unwanted"},
        found={"measured before": {"status": "measured", "value": 2}},
        out=tmp_path,
        minutes=9.0,
        cache="",
        about={"tiny": True, "jax": "0"},
    )
    report = json.loads((tmp_path / "accelerator.json").read_text())
    by_name = {entry["name"]: entry for entry in report["rows"]}
    assert {name: entry["status"] for name, entry in by_name.items()} == {
        "dies": "failed", "raises": "failed", "takes long": "skipped", "unwanted": "not chosen",
        "measured before": "measured", "works": "measured",
    }  # fmt: skip
    assert by_name["dies"]["error"] == "its process ended with exit code 3"
    assert by_name["raises"]["error"].startswith("JSONDecodeError: Expecting")
    assert by_name["takes long"]["error"].startswith("takes about 1000000 s, and ")
    assert (by_name["measured before"]["value"], by_name["works"]["value"]) == (2, 1)
    table = (tmp_path / "accelerator.md").read_text()
    assert all(name in table for name in by_name) and "2 of 6 rows are measured" in table


def test_a_row_that_hangs_is_stopped():
    with accelerator.Worker("") as worker:
        result = worker.measure(Row("hangs", subprocess.run, {"args": ["sleep", "60"]}, 1.0), 1.0)
    assert result == {"status": "failed", "error": "stopped after 1 s"}
