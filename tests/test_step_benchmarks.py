"""Benchmarks of the training step: they run, take their options, and count what a program moves."""

import json
import subprocess
import sys

import pytest

from benchmarks import (
    demo_ablation,
    hbm_traffic,
    precision,
    tpu_compile,
    workload,
)
from semivl_jax.config import drop_other_fields, validate
from tests.command import ROOT, environment
from tfds_builders.shapes import words


def test_the_step_is_timed(tmp_path):
    out = tmp_path / "step.json"
    command = [sys.executable, "-m", "benchmarks.train_step", "--config=configs/tiny.py", "--steps=1",
               "--breakdown", f"--out={out}"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    for name in ("ms_per_step", "compile_s", "loss", "tflop", "utilization"):
        assert found[name] > 0, name
    parts = found["breakdown_ms"]
    assert len(parts) == 7 and all(ms > 0 for ms in parts.values())


def test_fields_are_changed_by_name_and_unknown_ones_are_refused():
    config = workload.load_config("cityscapes", ["batch=2", "optim.name=sgd"])
    assert (config.data.crop, config.batch, config.optim.name) == (801, 2, "sgd")
    with pytest.raises(ValueError, match=r"--set=batches=2: the configuration has no key batches"):
        workload.load_config("voc", ["batches=2"])
    with pytest.raises(ValueError, match="vok: no such configuration file, nor one of voc, coco"):
        workload.load_config("vok")


def test_precisions_are_compared_with_the_deviation_of_the_seeds():
    result = precision.summary({"float32": [50.0, 51.0, 52.0], "worse": [48.0, 48.5, 49.0]})
    assert [entry["difference"] for entry in result] == pytest.approx([0, -2.5])
    assert result[0]["deviation"] is None
    assert result[1]["deviation"] == pytest.approx((1.0**2 / 2 + 0.5**2 / 2) ** 0.5)
    assert "| worse | 48.5 ± 0.5 | -2.5 | 0.8 |" in precision.format_table(result)
    assert precision.summary({"a": [1.0], "b": [2.0]})[1]["deviation"] is None


def test_rows_of_the_ablation_add_up_to_the_demo():
    rows = demo_ablation.rows()
    assert len(rows) == len(demo_ablation.STEPS) + len(demo_ablation.RATES)
    assert rows["+ class definitions"] == {}
    for fields in rows.values():
        config = workload.load_config(
            "configs/demo.py", [f"{key}={value}" for key, value in fields.items()]
        )
        drop_other_fields(config)
        validate(config)


def test_ablation_takes_the_classes_of_the_best_evaluation(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    lines = [
        {"step": step, "eval/miou": 0.0, "eval/miou_ema": miou, "eval/iou/tiger": tiger,
         **{f"eval/iou/{name}": 10.0 for name in words.CLASSES if name != "tiger"}}
        for step, miou, tiger in ((4, 30.0, 50.0), (8, 20.0, 90.0))
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = demo_ablation.scores(tmp_path)
    assert scores == {"mIoU": 30.0, "tiger, leopard": 30.0, "several concepts": 10.0}
    table = demo_ablation.format_table({"row": [scores, scores]}, title="demo")
    assert "| row | 30.0 ± 0.0 | 30.0 ± 0.0 | 10.0 ± 0.0 |" in table


def test_traffic_of_a_tpu_program():
    # The trip count is annotated, or follows from the condition, which is all that libtpu 0.0.52 prints.
    for rounds in ('backend_config={"known_trip_count":{"n":"5"}}', "condition=%limit"):
        check_traffic(rounds)
    with pytest.raises(ValueError, match="ENTRY"):
        hbm_traffic.of_program("HloModule empty")


def check_traffic(rounds):
    text = """HloModule step

body (p: (bf16[4,100])) -> (bf16[4,100]) {
  %p = (bf16[4,100]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,100]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=0
  %y = bf16[4,100]{1,0:T(8,128)(2,1)} negate(%x)
  ROOT %t = (bf16[4,100]{1,0:T(8,128)(2,1)}) tuple(%y)
}

limit (p: (s32[])) -> pred[] {
  %p = (s32[]{:T(128)}) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY main (a: f32[3,4,100]) -> f32[3,4,100] {
  %a = f32[3,4,100]{0,2,1:T(8,128)} parameter(0)
  %s = ((f32[3,4,100]{0,2,1:T(8,128)}), f32[3,2,100]{0,2,1:T(8,128)S(1)}, s32[]{:T(128)}) slice-start(%a)
  %d = f32[3,2,100]{0,2,1:T(8,128)S(1)} slice-done(%s)
  %f = f32[3,4,100]{0,2,1:T(8,128)S(1)} fusion(%a, /*index=1*/%d), kind=kLoop, calls=%other
  %w = (bf16[4,100]{1,0:T(8,128)(2,1)}) while(%s), body=%body, ROUNDS
  ROOT %o = f32[3,4,100]{0,2,1:T(8,128)} copy(%f)
}
""".replace("ROUNDS", rounds)
    traffic = hbm_traffic.of_program(text)
    whole, small = 3 * 4 * 100 * 4, 4 * 100 * 2
    # The slice moves in, the fusion reads the whole, five rounds read and write, the copy writes the whole.
    assert traffic.needed == whole / 2 + whole + 5 * 2 * small + whole
    padded, small = 4 * 104 * 128 * 4, 8 * 128 * 2
    assert traffic.stored == padded / 2 + padded + 5 * 2 * small + padded
    assert traffic.padding == pytest.approx(1 - traffic.needed / traffic.stored)


@pytest.mark.parametrize("space, writes", [("", 1), ("S(1)", 0), ("S(3)", 0)])
def test_a_loop_moves_slices_of_its_arrays(space, writes):
    """One slice of x is read and one of y updated, which may lie in fast memory (CMEM on v4)."""
    text = """HloModule step

read (x: f32[6,8,128], i: s32[]) -> f32[1,8,128] {
  %x = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  ROOT %s = f32[1,8,128]{2,1,0:T(8,128)S(1)} dynamic-slice(%x, %i), dynamic_slice_sizes={1,8,128}
}

update (y: f32[6,8,128], i: s32[], s: f32[1,8,128]) -> f32[6,8,128] {
  %y = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %s = f32[1,8,128]{2,1,0:T(8,128)} parameter(2)
  %negative = f32[1,8,128]{2,1,0:T(8,128)} negate(%s)
  ROOT %d = f32[6,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%y, %negative, %i)
}

ENTRY main (x: f32[6,8,128], y: f32[6,8,128], i: s32[]) -> f32[6,8,128] {
  %x = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)
  %y = f32[6,8,128]{2,1,0:T(8,128)SPACE} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %s = f32[1,8,128]{2,1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%read
  ROOT %d = f32[6,8,128]{2,1,0:T(8,128)SPACE} fusion(%y, %i, %s), kind=kLoop, calls=%update
}
""".replace("SPACE", space)
    assert hbm_traffic.of_program(text).needed == (1 + writes) * 8 * 128 * 4


def test_recipes_of_the_tpu_compiler_have_arguments_with_commas():
    given = [
        "voc",
        "configs/unimatch_v2.py:dataset=voc,92,backbone=dinov3_vitl16",
        "configs/tiny.py",
        "coco",
    ]
    assert tpu_compile.split_recipes(",".join(given)) == given


@pytest.mark.slow
def test_the_tpu_compiler_takes_the_whole_step():
    pytest.importorskip("libtpu")
    row = tpu_compile.compile_one("configs/tiny.py", "v5e-8", "train", [])
    assert row["fits"] and row["devices"] == 8 and row["batch"] == 8
    assert 0 < row["temporary_gib"] < 1 and row["tflop"] > 0
    assert row["collectives"]["all-reduce"] > 0
    assert 0 < row["padding"] < 1 and 0 < row["hbm_gb"] < row["gb_accessed"]
