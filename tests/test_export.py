"""Exported programs run where only JAX is, and compute what the model computes."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from semivl_jax import export
from semivl_jax.inference import load
from semivl_jax.inference.segmenter import Segmenter
from semivl_jax.models import image_normalization
from tests import served
from tests.inference.test_segmenter import photo

EXAMPLE = Path(__file__).parent.parent / "examples" / "run_exported.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served.make(tmp_path_factory.mktemp("run") / "serving")


def test_the_example_needs_only_jax_and_numpy(model, tmp_path):
    out = tmp_path / "model.stablehlo"
    assert export.main(["--model", str(model), "--out", str(out)]) == 0
    facts = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert facts["classes"] == list(served.INFO.classes) and facts["size"] == [32, 32]
    assert facts["platforms"] == ["cpu", "cuda", "tpu"] and facts["batch"] == "any"
    np.save(tmp_path / "image.npy", photo((32, 32)))
    # Whatever is neither Python's own nor needed by JAX itself cannot be imported.
    script = (
        "import sys, runpy\n"
        "class Gate:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('semivl_jax', 'flax', 'PIL', 'safetensors', 'optax', 'configs'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Gate())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    files = [str(tmp_path / name) for name in ("model.stablehlo", "image.npy", "labels.npy")]
    done = subprocess.run(
        [sys.executable, "-c", script, str(EXAMPLE), *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(served.INFO.classes)
    expected = Segmenter.load(model, cache="")(photo((32, 32)))
    best = np.sort(expected.scores, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    found = np.load(tmp_path / "labels.npy")
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found[clear], expected.labels[clear])


def test_sizes_batches_inputs_and_outputs(model):
    opened = load.open_model(model, cache="")
    options = {"size": (24, 40), "batch": 0, "platforms": ["cpu"]}
    images = np.stack([photo((24, 40), seed) for seed in range(3)])
    logits = export.export_model(opened, images="uint8", output="logits", **options).call(images)
    assert logits.shape == (3, 24, 40, 3)
    normal = image_normalization.normalize(jax.numpy.asarray(images))
    again = export.export_model(opened, images="float32", output="labels", **options).call(normal)
    assert again.dtype == np.uint8
    agree = np.asarray(again) == np.asarray(logits).argmax(-1)
    assert agree.mean() > 0.999
    with pytest.raises(ValueError):
        export.export_model(
            opened, images="uint8", output="logits", size=(32, 32), batch=2, platforms=["cpu"]
        ).call(images[:, :, :32])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do; give --out FILE"),
        (["--out", "x", "--size", "12"], "--size=12: give rows and columns"),
        (["--out", "x", "--size", "8,64"], "--size=8,64 is too small for the model; give 16"),
        (["--out", "x", "--platforms", "cpu,abacus"], "names 'abacus'; choose among cpu, cuda"),
        (["--push_to_hub", "me"], "--push_to_hub=me is no repository; write USER/REPO"),
    ],
)
def test_errors_are_one_sentence(model, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert export.main(["--model", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
