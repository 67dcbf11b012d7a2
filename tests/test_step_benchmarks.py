"""The benchmarks of the step run where packages are missing, and count what XLA counts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hbm_traffic, model_flops, precision, restart, tpu_compile, workload
from semivl_jax.models import conv, layers

ROOT = Path(__file__).parent.parent

# A program that hides everything but jax, flax, optax and what they bring, then runs the benchmark.
_BARE = """
import sys
for name in ("jaxtyping", "ml_collections", "safetensors", "grain", "tensorflow_datasets", "cv2",
             "tensorboardX", "tqdm", "ftfy", "tokenizers", "array_record"):
    sys.modules[name] = None
from benchmarks import stand_ins, train_step
train_step.main()
"""


def test_the_step_is_timed_without_the_packages_of_the_data(tmp_path):
    out = tmp_path / "step.json"
    command = [sys.executable, "-c", _BARE, "--config=configs/tiny.py", "--steps=1", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["ms_per_step"] > 0 and found["compile_s"] > 0 and found["loss"] > 0
    assert set(found["model_tflop"]) == {"towers", "decoder", "teacher", "guidance"}


def test_the_formulas_count_what_the_compiler_counts(monkeypatch):
    """XLA also counts norms and the like, some per cent; it gets the convolutions as they are written."""
    monkeypatch.setattr(conv, "_form", lambda *_, **__: None)
    monkeypatch.setattr(
        layers.Upsampled,
        "convolved",
        lambda self, kernel: [conv.convolve(self.pixels(), kernel)],
    )
    config = workload.load_config("voc")
    work = workload.build(config)
    tree, segmenter = work.abstract_state().student(), work.parts.segmenter
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)

    def encode(tree, image):
        return segmenter.apply(tree, image, method="encode").maps

    def decode(tree, features):
        return segmenter.decoder.apply({"params": tree["params"]["decoder"]}, features, text)

    text = work.constants.text
    features = jax.eval_shape(
        lambda tree, image: segmenter.apply(tree, image, method="encode"), tree, image
    )
    counted = [
        jax.jit(function).lower(tree, given).cost_analysis()["flops"]
        for function, given in ((encode, image), (decode, features))
    ]
    assert sum(model_flops.tower_forward(work)) == pytest.approx(counted[0], rel=0.03)
    assert model_flops.decoder_forward(work) == pytest.approx(counted[1], rel=0.03)


def test_fields_are_changed_by_name_and_unknown_ones_are_refused():
    config = workload.load_config("cityscapes", ["batch=2", "optim.name=sgd"])
    assert (config.data.crop, config.batch, config.optim.name) == (801, 2, "sgd")
    with pytest.raises(ValueError, match=r"--set=batches=2: the configuration has no key batches"):
        workload.load_config("voc", ["batches=2"])
    with pytest.raises(ValueError, match="recipe 'vok' is unknown; choose one of voc, coco"):
        workload.load_config("vok")


def test_precisions_are_compared_by_the_noise_of_the_seeds():
    rows = [
        precision.Row("float32", [50.0, 51.0, 52.0]),
        precision.Row("bfloat16", [50.5, 51.5, 51.0]),
        precision.Row("worse", [48.0, 48.5, 49.0]),
        precision.Row("alone", [50.0]),
    ]
    result = precision.summary(rows)
    assert [entry["within_noise"] for entry in result] == [None, True, False, False]
    assert result[2]["difference"] == pytest.approx(-2.5)
    assert result[2]["noise"] == pytest.approx((1.0**2 / 2 + 0.5**2 / 2) ** 0.5)
    table = precision.format_table(rows[:3], result[:3])
    assert "| worse | 48.5 ± 0.5 | -2.5 | 0.8 | **beyond the noise** |" in table
    assert precision.summary(rows[3:])[0]["within_noise"] is None
    runs = precision.planned(Path("out"), "configs/demo.py", [0, 1], {"steps": 5})
    assert set(runs) == set(precision.ROWS)
    assert runs["bfloat16"][1].fields == {"steps": 5, "dtype": "bfloat16", "seed": 1}


def test_a_restart_is_timed_until_its_line_and_stopped():
    """The help of the program has the lines; a training would take long to say its own."""
    seconds, found = restart.seconds_until(re.compile(r" *--\[?no\]?(debug)"), ["--help"])
    assert found == "debug" and 0 < seconds < 60
    assert restart._READY.match("training step: traced in 5.1 s, read in 0.2 s more; 3 GFLOP")[
        1
    ] == ("traced in 5.1 s, read in 0.2 s more")
    with pytest.raises(ValueError, match=r"ended first:\nerror: --config=no\.py"):
        restart.seconds_until(re.compile("never"), ["--config=no.py"])


def test_traffic_of_a_tpu_program():
    text = """HloModule step

body (p: (bf16[4,100])) -> (bf16[4,100]) {
  %p = (bf16[4,100]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,100]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=0
  %y = bf16[4,100]{1,0:T(8,128)(2,1)} negate(%x)
  ROOT %t = (bf16[4,100]{1,0:T(8,128)(2,1)}) tuple(%y)
}

ENTRY main (a: f32[3,4,100]) -> f32[3,4,100] {
  %a = f32[3,4,100]{0,2,1:T(8,128)} parameter(0)
  %s = ((f32[3,4,100]{0,2,1:T(8,128)}), f32[3,2,100]{0,2,1:T(8,128)S(1)}, s32[]{:T(128)}) slice-start(%a)
  %d = f32[3,2,100]{0,2,1:T(8,128)S(1)} slice-done(%s)
  %f = f32[3,4,100]{0,2,1:T(8,128)S(1)} fusion(%a, /*index=1*/%d), kind=kLoop, calls=%other
  %w = (bf16[4,100]{1,0:T(8,128)(2,1)}) while(%s), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %o = f32[3,4,100]{0,2,1:T(8,128)} copy(%f)
}
"""
    traffic = hbm_traffic.of_program(text)
    whole, small = 3 * 4 * 100 * 4, 4 * 100 * 2
    # The slice moves in, the fusion reads the whole, five rounds read and write, the copy writes the whole.
    assert traffic.needed == whole / 2 + whole + 5 * 2 * small + whole
    padded, small = 4 * 104 * 128 * 4, 8 * 128 * 2
    assert traffic.stored == padded / 2 + padded + 5 * 2 * small + padded
    assert traffic.padding == pytest.approx(1 - traffic.needed / traffic.stored)
    with pytest.raises(ValueError, match="ENTRY"):
        hbm_traffic.of_program("HloModule empty")


@pytest.mark.slow
def test_the_tpu_compiler_takes_the_whole_step():
    pytest.importorskip("libtpu")
    row = tpu_compile.compile_one("configs/tiny.py", "v5e-8", "train", [])
    assert row["fits"] and row["devices"] == 8 and row["batch"] == 8
    assert 0 < row["temporary_gib"] < 1 and row["tflop"] > 0
    assert row["collectives"]["all-reduce"] > 0
    assert 0 < row["padding"] < 1 and 0 < row["hbm_gb"] < row["gb_accessed"]
