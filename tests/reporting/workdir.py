"""A workdir as a finished run leaves it, with generated numbers and pictures."""

import json

import numpy as np

from semivl_jax.evaluation import confusion, samples

METRICS = ("loss", "loss_x", "loss_s1", "loss_fp", "guidance_s1", "confident", "guidance_share",
           "lr_backbone", "lr_decoder", "gradient_norm", "images_per_s")  # fmt: skip
SESSION = {
    "started": "2026-01-02T03:04:05+00:00",
    "first_step": 0,
    "last_step": 60,
    "seconds": 3600.0,
    "outcome": "finished",
    "command": "main.py --config=configs/demo.py",
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "devices": {"count": 8, "kind": "TPU", "platform": "tpu", "processes": 1, "cpu_cores": 96},
    "source": {"commit": "0" * 40, "changed": False},
}


def make_workdir(workdir, *, classes, steps, images, size):
    """`size` is (height, width) of the pictures; evaluations at half time and at the end."""
    rng = np.random.default_rng(0)
    workdir.mkdir(parents=True)
    names = [f"class {i:03d}" for i in range(classes)]
    palette = rng.integers(0, 256, (classes, 3), np.uint8)
    pixels = rng.integers(1, 10**6, classes)
    balance = {"pixels": pixels.tolist(), "images": [7] * classes}
    metadata = {
        "dataset": "made up",
        "images": {"labelled": 40, "unlabelled": 2960, "validation": 300},
        "classes": names,
        "palette": palette.tolist(),
        "balance": {"labelled": balance, "validation": balance},
        "total_steps": steps,
        "sessions": [SESSION],
    }
    (workdir / "config.json").write_text(json.dumps({"steps": steps, "data": {"crop": 512}}))
    (workdir / "run.json").write_text(json.dumps(metadata))
    (workdir / "evaluations").mkdir()
    lines = []
    for step in range(1, steps + 1):
        values = np.exp(-step / steps) * (1 + 0.1 * rng.standard_normal(len(METRICS)))
        line = {f"train/{key}": float(v) for key, v in zip(METRICS, values, strict=True)}
        lines.append({"step": step, **line})
        if step in (steps // 2, steps):
            matrix = rng.integers(0, 50, (classes, classes)) + np.diag(pixels)
            labels = np.pad(matrix, ((0, 1), (0, 1)), constant_values=10)
            np.savez_compressed(
                workdir / "evaluations" / f"{step:07d}.npz",
                **{"confusion/student": matrix, "confusion/ema": matrix + 1},
                **{"labels/pseudo": labels, "labels/predicted": labels},
                ids=[f"photo/{i}" for i in range(images)],
                image_iou=np.linspace(90, 10, images),
            )
            miou = float(confusion.iou(matrix).mean())
            values = {"eval/miou": miou - 1, "eval/miou_ema": miou, "eval/pseudo_right": 90.0}
            lines.append({"step": step, **values})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = (sample(rng, f"photo/{i}", size, classes) for i in range(images))
    samples.save(workdir / "samples", steps, made, palette=palette)
    return workdir


def sample(rng, id, size, classes):
    """A noisy picture with label maps of regions of 10 × 10 pixels."""
    tiles = rng.integers(0, classes, (size[0] // 10 + 1, size[1] // 10 + 1), np.uint8)
    truth = np.kron(tiles, np.ones((10, 10), np.uint8))[: size[0], : size[1]]
    return samples.Sample(
        id=id,
        iou=float(rng.uniform(5, 95)),
        chosen="first",
        image=rng.integers(0, 256, (*size, 3), np.uint8),
        truth=truth,
        prediction=np.roll(truth, 9, (0, 1)),
        pseudo=np.where(rng.random(size) < 0.1, 255, truth).astype(np.uint8),
        confidence=rng.uniform(0.5, 1, size).astype(np.float32),
        guidance=np.roll(truth, -9, (0, 1)),
    )
