"""What a user waits for with the public data sets, tried with archives of their layout and size.

    python -m benchmarks.rehearsal --out=/scratch/rehearsal
    python -m benchmarks.rehearsal --out=/tmp/small --share=0.01 --datasets=ade20k

For every data set this writes archives with as many files and about as many bytes as the published ones, of
random images of the published size, and prepares them. For ADE20K it then checks configs/ade_158.py, trains
three steps with ViT-B/16 (random weights, batch 1) and evaluates 50 images. Every step is a process of its
own; prints its wall time, its peak memory and the size of its files as rows of a table.

The complete rehearsal writes about 30 GB. `--share` is the part of the images, for trying out.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from semivl_jax import utils
from semivl_jax.data import examples, published_splits
from tfds_builders import common
from tfds_builders.builders import PUBLISHED
from tfds_builders.published import PublishedBuilder

IMAGES_EVALUATED = 50


@dataclasses.dataclass(frozen=True)
class Images:
    """Published images: rows and columns, mean bytes of a file, suffix, classes."""

    size: tuple[int, int]
    bytes: int
    suffix: str
    classes: int


# Sizes and bytes: of the archives, divided by their files.
IMAGES = {
    "ade20k": Images((512, 683), 40_000, ".jpg", 151),
    "voc": Images((375, 500), 110_000, ".jpg", 21),
    "cityscapes": Images((1024, 2048), 2_300_000, ".png", 19),
}


def main() -> None:
    """Runs the steps and prints the table; or, called by itself, one step."""
    options = parser().parse_args()
    out, share = Path(options.out), options.share
    if options.step:
        _STEPS[options.step](options.dataset, out, share)
        return
    print("| data set | step | wall time | peak memory | files |", flush=True)
    print("| --- | --- | --- | --- | --- |", flush=True)
    for dataset in options.datasets.split(","):
        steps = ["archives", "prepare"]
        if dataset == "ade20k":
            steps += ["check", "train", "evaluate"]
        for step in steps:
            if step not in options.steps.split(","):
                continue
            command = [sys.executable, "-m", "benchmarks.rehearsal", f"--step={step}"]
            command += [f"--dataset={dataset}", f"--out={out}", f"--share={share}"]
            print(_measured(command, dataset, step, out), flush=True)


def _measured(command: list[str], dataset: str, step: str, out: Path) -> str:
    """Runs a command and returns its row; its output goes to a file."""
    out.mkdir(parents=True, exist_ok=True)
    before, start = _size(out), time.monotonic()
    with (out / f"{dataset}-{step}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    minutes = (time.monotonic() - start) / 60
    if status:
        sys.exit(f"{step} of {dataset} failed; see {log.name}")
    memory, files = usage.ru_maxrss / 2**20, (_size(out) - before) / 1e9
    return f"| {dataset} | {step} | {minutes:.1f} min | {memory:.1f} GiB | {files:.1f} GB |"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def counts(dataset: str, share: float) -> dict[str, int]:
    """Images of every part."""
    sizes = PUBLISHED[dataset].SIZES
    return {part: max(2, round(share * number)) for part, number in sizes.items()}


def make_archives(dataset: str, out: Path, share: float) -> None:
    """Writes the archives, and for VOC the lists, where `prepare` looks for them."""
    folder = _builder(dataset, out, share).downloads
    folder.mkdir(parents=True, exist_ok=True)
    names = {part: _names(dataset, part, n) for part, n in counts(dataset, share).items()}
    total = 2 * sum(map(len, names.values()))
    with utils.Progress(f"archives of {dataset}", total=total, unit="files") as shown:
        files: dict[str, list[tuple[str, str, int]]] = {}
        for part, members in PUBLISHED[dataset].LAYOUT.items():
            for kind, place in zip(("image", "mask"), members, strict=True):
                rows = files.setdefault(place.archive, [])
                prefix = _folder_of(dataset, place.archive, place.folder)
                for index, name in enumerate(names[part]):
                    rows.append((kind, f"{prefix}{name}{place.suffix}", index + len(rows) * 10**6))
        made = _Drawing(IMAGES[dataset])
        for archive, rows in files.items():
            drawn = utils.ordered_map(lambda row: (row[1], made.draw(row[0], row[2])), rows)
            _pack(folder / archive, drawn, shown)
    if dataset == "voc":
        labelled = round(len(names["train"]) * 1464 / 10_582)
        lists = (names["train"][:labelled], names["train"][labelled:], names["validation"])
        paths = [path for parts in published_splits.VOC_PARTS.values() for path in parts]
        for path, ids in zip(paths, lists, strict=True):
            lines = "".join(f"JPEGImages/{id}.jpg SegmentationClass/{id}.png\n" for id in ids)
            utils.write_text(folder / path.replace("/", "-"), lines)


def _names(dataset: str, part: str, number: int) -> list[str]:
    if dataset == "ade20k":
        short = {"train": "train", "validation": "val"}[part]
        return [f"ADE_{short}_{index:08d}" for index in range(1, number + 1)]
    if dataset == "cityscapes":
        cities = ("aachen", "zurich") if part == "train" else ("frankfurt", "munster")
        places = ((cities[index % 2], index) for index in range(number))
        return [f"{city}/{city}_{index:06d}_000019" for city, index in places]
    first = 0 if part == "train" else 100_000
    return [f"2007_{first + index:06d}" for index in range(number)]


def _folder_of(dataset: str, archive: str, folder: str) -> str:
    """Where an archive has the files of a layout's folder."""
    if dataset == "ade20k":
        return f"ADEChallengeData2016/{folder}/"
    if dataset == "voc":
        return f"VOCdevkit/VOC2012/{folder}/" if folder else "SegmentationClass/"
    return f"{'gtFine' if 'ground_truth' in archive else 'leftImg8bit'}/{folder}/"


class _Drawing:
    """Encoded random pictures and masks: smooth fields with noise, as many bytes as published on average."""

    def __init__(self, images: Images) -> None:
        self._images = images
        rng = np.random.default_rng(0)
        rows, columns = images.size
        field = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        self._field = cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC)
        self._noise = rng.normal(size=(rows, columns, 1)).astype(np.float32)
        self._strength = self._calibrate()

    def _calibrate(self) -> float:
        """The strength of noise with which a picture has the published number of bytes."""
        low, high = 0.0, 512.0
        for _ in range(14):
            middle = (low + high) / 2
            larger = len(self._encode(middle, 0)) > self._images.bytes
            low, high = (low, middle) if larger else (middle, high)
        return low

    def draw(self, kind: str, seed: int) -> bytes:
        """An image or mask as a file; equal for equal seeds."""
        if kind == "image":
            return self._encode(self._strength, seed)
        rows, columns = self._images.size
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, self._images.classes, (6, 8), dtype=np.uint8)
        label = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_NEAREST)
        return cv2.imencode(".png", label)[1].tobytes()

    def _encode(self, strength: float, seed: int) -> bytes:
        shift = np.random.default_rng(seed).integers(0, 10_000, 4)
        field = np.roll(self._field, shift[:2], (0, 1)).astype(np.float32)
        picture = field + strength * np.roll(self._noise, shift[2:], (0, 1))
        pixels = np.clip(picture, 0, 255).astype(np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 60] if self._images.suffix == ".jpg" else []
        return cv2.imencode(self._images.suffix, pixels, quality)[1].tobytes()


def _pack(path: Path, files: Iterator[tuple[str, bytes]], shown: utils.Progress) -> None:
    with utils.atomic_write(path) as temporary:
        if path.suffix == ".tar":
            with tarfile.open(temporary, "w") as tar:
                for name, content in files:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    shown.update()
            return
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in files:
                archive.writestr(name, content)
                shown.update()


def _builder(dataset: str, out: Path, share: float) -> PublishedBuilder:
    """The builder of `prepare`, without the checksums of the published files, of which these are none."""
    builder = PUBLISHED[dataset](data_dir=out / "data")
    builder.files = tuple(
        dataclasses.replace(file, sha256="", size=0, url="") for file in builder.files
    )
    builder.SIZES = counts(dataset, share)
    return builder


def prepare(dataset: str, out: Path, share: float) -> None:
    """`python -m semivl_jax.prepare DATASET`."""
    print(common.prepare(_builder(dataset, out, share)))


def _run(mode: str) -> None:
    def step(dataset: str, out: Path, share: float) -> None:
        from absl import app

        from semivl_jax import main as program

        PUBLISHED[dataset].SIZES = counts(dataset, share)
        _evaluate_few()
        flags = [
            "--config=configs/ade_158.py",
            f"--mode={mode}",
            f"--workdir={out / 'run'}",
            f"--config.data.directory={out / 'data'}",
            "--config.model.weights=random",
            "--config.batch=1",
            "--config.steps=3",
            "--config.log_every=1",
            "--config.evaluation.window_batch=1",
            "--config.evaluation.pseudo_label_eval_images=4",
        ]
        app.run(program.main, argv=["main", *flags], flags_parser=program.parse_flags)

    return step


def _evaluate_few() -> None:
    """Lets the evaluation have the first images only."""
    whole = examples.EvalExamples.__init__

    def first(self: examples.EvalExamples, *arguments: object, **options: object) -> None:
        whole(self, *arguments, **options)
        self._indices = self._indices[:IMAGES_EVALUATED]

    examples.EvalExamples.__init__ = first


_STEPS = {
    "archives": make_archives,
    "prepare": prepare,
    "check": _run("check"),
    "train": _run("train"),
    "evaluate": _run("evaluate"),
}


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.rehearsal", __doc__)
    option = command.add_argument
    option("--out", required=True, help="folder for archives, prepared data and the run")
    option("--datasets", default=",".join(IMAGES), help="which; default: %(default)s")
    option("--steps", default=",".join(_STEPS), help="which; default: %(default)s")
    option("--share", type=float, default=1.0, help="part of the images; default: all")
    option("--step", choices=_STEPS, help=argparse.SUPPRESS)
    option("--dataset", choices=IMAGES, help=argparse.SUPPRESS)
    return command


if __name__ == "__main__":
    main()
