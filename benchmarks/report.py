"""Size of a large report and how fast it opens.

    python -m benchmarks.report [--classes=150 --steps=20000 --images=16 --openings=5 --out=FOLDER]

Makes a workdir with drawn-up numbers and pictures as a long run on photos would leave it, writes its report
and opens that in headless Chromium (Debian: chromium and chromium-driver), in a fresh browser each time,
so nothing of the page was read or compiled before. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import browser
from semivl_jax import report, utils
from semivl_jax.evaluation import confusion, samples

_SCALARS = ("loss", "loss_x", "loss_s1", "loss_s2", "loss_fp", "guidance_s1", "guidance_s2",
            "guidance_fp", "confident", "guidance_share", "lr_backbone", "lr_decoder",
            "gradient_norm", "images_per_s")  # fmt: skip


def make_workdir(
    workdir: Path, *, classes: int, steps: int, images: int, size: tuple[int, int] = (375, 500)
) -> Path:
    """A finished run with these sizes; evaluations at half time and at the end."""
    rng = np.random.default_rng(0)
    workdir.mkdir(parents=True, exist_ok=True)
    names = [f"class {i:03d}" for i in range(classes)]
    palette = rng.integers(0, 256, (classes, 3))
    counts = rng.integers(1, 10**6, classes).tolist()
    shares = {"pixels": counts, "images": [7] * classes}
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "first_step": 0,
        "last_step": steps,
        "seconds": 3600.0,
        "outcome": "finished",
        "command": "main.py --config=configs/demo.py",
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "devices": {"count": 8, "kind": "TPU", "platform": "tpu", "processes": 1, "cpu_cores": 96},
        "source": {"commit": "0" * 40, "changed": False},
    }
    facts = {
        "dataset": "drawn up",
        "images": {"labelled": 40, "unlabelled": 2960, "validation": 300},
        "classes": names,
        "palette": palette.tolist(),
        "balance": {"labelled": shares, "validation": shares},
        "total_steps": steps,
        "images_per_step": 16,
        "score": "eval/miou_ema",
        "sessions": [session],
    }
    (workdir / "config.json").write_text(json.dumps({"steps": steps, "data": {"crop": 512}}))
    (workdir / "run.json").write_text(json.dumps(facts))
    ids = [f"photo/{i}" for i in range(images)]
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            values = np.exp(-step / steps) * (1 + 0.1 * rng.standard_normal(len(_SCALARS)))
            line = {f"train/{key}": float(v) for key, v in zip(_SCALARS, values, strict=True)}
            file.write(json.dumps({"step": step, **line}) + "\n")
            if step % max(1, steps // 2) == 0:
                matrix = rng.integers(0, 50, (classes, classes)) + np.diag(counts)
                _evaluation(workdir, step, matrix, ids)
                miou = float(confusion.iou(matrix).mean())
                values = {"eval/miou": miou - 1, "eval/miou_ema": miou, "eval/pseudo_right": 90.0}
                file.write(json.dumps({"step": step, **values}) + "\n")
    drawn = (_sample(rng, id, size, classes) for id in ids)
    samples.save(workdir / "samples", steps, drawn, palette=palette.astype(np.uint8))
    return workdir


def _evaluation(workdir: Path, step: int, matrix: np.ndarray, ids: list[str]) -> None:
    folder = workdir / "evaluations"
    folder.mkdir(exist_ok=True)
    targets = np.pad(matrix, ((0, 0), (0, 1)))
    arrays = {"student": matrix, "average": matrix, "pseudo": targets, "guidance": targets}
    scores = np.linspace(90, 10, len(ids))
    np.savez_compressed(folder / f"{step:07d}.npz", **arrays, ids=ids, image_iou=scores)


def _sample(
    rng: np.random.Generator, id: str, size: tuple[int, int], classes: int
) -> samples.Sample:
    """A photo-like picture: smooth noise, and label maps of a few dozen regions."""
    rows, cols = size
    smooth = np.kron(
        rng.integers(40, 216, (rows // 25 + 1, cols // 25 + 1, 3)), np.ones((25, 25, 1))
    )
    image = (smooth[:rows, :cols] + rng.normal(0, 12, (rows, cols, 3))).clip(0, 255)
    regions = np.kron(rng.integers(0, classes, (rows // 40 + 1, cols // 40 + 1)), np.ones((40, 40)))
    truth = regions[:rows, :cols].astype(np.uint8)
    return samples.Sample(
        id=id,
        iou=float(rng.uniform(5, 95)),
        chosen="first",
        image=image.astype(np.uint8),
        truth=truth,
        prediction=np.roll(truth, 9, (0, 1)),
        pseudo=np.where(rng.random(size) < 0.1, 255, truth).astype(np.uint8),
        confidence=rng.uniform(0.5, 1, size).astype(np.float32),
        guidance=np.roll(truth, -9, (0, 1)),
    )


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("benchmarks.report", __doc__)
    made.add_argument("--classes", type=int, default=150, help="classes of the data set")
    made.add_argument("--steps", type=int, default=20000, help="steps, each with its scalars")
    made.add_argument("--images", type=int, default=16, help="validation images with pictures")
    made.add_argument("--openings", type=int, default=5, help="fresh browsers that open it")
    made.add_argument("--out", help="keep the workdir here; default: a temporary folder")
    return made


def main() -> None:
    """Prints sizes and times."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(options.out or temporary)
        make_workdir(workdir, classes=options.classes, steps=options.steps, images=options.images)
        began = time.monotonic()
        path = report.write([workdir], workdir / report.NAME)
        print(f"written in {time.monotonic() - began:.1f} s, {path.stat().st_size / 1e6:.2f} MB")
        missing = browser.missing()
        if missing:
            print(f"not opened: {missing}")
            return
        print(
            f"{'seconds after opening':24}{'first text':>12}{'first screen':>14}{'all charts':>12}"
        )
        for number in range(options.openings):
            with browser.Browser() as page:
                seen = page.open(path)
            times = [seen.first_paint, seen.first_screen, seen.all_charts]
            first, screen, everything = (f"{time / 1000:.2f}" for time in times)
            print(f"{f'fresh browser {number + 1}':24}{first:>12}{screen:>14}{everything:>12}")


if __name__ == "__main__":
    main()
