"""The table of the variants of guidance: counts, the chosen threshold, and the command that writes it."""

import json

import numpy as np
import pytest

from configs import tiny
from semivl_jax.config import set_method
from semivl_jax.experiment import guidance_quality, run
from semivl_jax.reporting import page
from tests.photos import make_folder


def test_a_variant_must_be_as_right_as_the_own_one():
    thresholds = [0.0, 0.5, 0.9]
    own = np.array([[60, 50, 27], [100, 70, 30], [120] * 3])
    other = np.array([[60, 56, 40], [120, 70, 50], [120] * 3])
    worse = np.array([[10, 5, 0], [100, 70, 0], [120] * 3])
    rows = [
        guidance_quality.row(counts, thresholds, at=1, of=own) for counts in (own, other, worse)
    ]
    assert [row["labelled"] for row in rows] == pytest.approx([58.3333, 58.3333, 58.3333], abs=1e-3)
    assert [row["right"] for row in rows] == pytest.approx([71.4286, 80, 7.1429], abs=1e-3)
    assert rows[0]["chosen"]["threshold"] == rows[1]["chosen"]["threshold"] == 0.5
    assert rows[2]["chosen"] is None
    assert guidance_quality.row(worse, thresholds, at=2, of=own)["right"] is None


def test_labels_count_up_to_their_confidence():
    confidence = np.float32([0.2, 0.5, 0.95, 0.7])
    right = np.array([True, False, True, True])
    counts = guidance_quality.count(confidence, right, [0.0, 0.5, 0.9])
    np.testing.assert_array_equal(counts, [[3, 2, 1], [4, 3, 1], [4, 4, 4]])


def test_the_command_measures_every_variant_for_the_report(one_device, tmp_path, capsys):
    config = tiny.get_config(str(make_folder(tmp_path / "photos")))
    config.data.directory, config.compilation_cache = str(tmp_path / "prepared"), ""
    work = tmp_path / "work"
    run.guidance(config, str(work))
    assert "cosine*" in capsys.readouterr().out
    table = json.loads((work / guidance_quality.FILE).read_text())
    assert table["images"] > 0 and table["threshold"] == 0.9
    assert [row["own"] for row in table["variants"]] == [True, False, False, False]
    for row in table["variants"]:
        assert 0 <= row["labelled"] <= 100
    (work / "config.json").write_text("{}")
    assert "svc, surgery" in page.write([work], tmp_path / "report.html").read_text()
    set_method(config, "unimatch")
    with pytest.raises(ValueError, match="'unimatch' has no guidance to measure"):
        run.guidance(config, str(work))
