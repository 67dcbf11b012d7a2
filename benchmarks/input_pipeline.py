"""Crops per second per core: this project's pipeline beside one that makes all views on the host.

    python -m benchmarks.input_pipeline --out=input_pipeline.json [--seconds=20 --workers=1,2]

The images are generated (photos.py): JPEGs of 500 × 375 with the "ratio" resize and crops of 512 (as Pascal
VOC), and of 2048 × 1024 with the "long side" resize and crops of 801 (as Cityscapes), with PNG masks. An item
is three crops: a labelled one with its mask, the weak crop of an unlabelled image, its CutMix partner. This
project sends them as uint8 and leaves flips, colours, blur, boxes and normalisation to the accelerator; the
other pipeline (host_views.py) does what the published training does on the host. Every measurement runs in
new processes. The rate of a core is crops per second of processor time of all processes, which other programs
hardly affect; the rate by the clock is beside it. Memory is the largest sum of proportional set sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import host_views, photos
from semivl_jax import utils

# Shape of the images, resize rule, crop, number of images, classes.
SETS: dict[str, dict[str, Any]] = {
    "voc": {"shape": (375, 500), "rule": "ratio", "crop": 512, "count": 64, "classes": 21},
    "cityscapes": {"shape": (1024, 2048), "rule": "long_side", "crop": 801, "count": 16, "classes": 19},
}  # fmt: skip
PIPELINES = ("ours", "host views")
_LABELLED = 8


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.input_pipeline", __doc__)
    option = command.add_argument
    option("--out", default="input_pipeline.json", help="the results as JSON")
    option("--seconds", type=float, default=20.0, help="length of every measurement")
    option("--workers", default="1,2", help="numbers of worker processes")
    option("--batch", type=int, default=4, help="images of each kind per batch")
    option("--measure", default="", help="one measurement as JSON; for the command's own use")
    return command


def main() -> None:
    """Makes the images, runs every measurement, prints the table, writes the file."""
    options = parser().parse_args()
    if options.measure:
        print(json.dumps(_measure(**json.loads(options.measure))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in SETS:
            root = Path(place) / name
            size = make(root, name)
            print(f"{name}: {SETS[name]['count']} images, {size / 1000:.0f} kB each", flush=True)
            for workers in map(int, options.workers.split(",")):
                for pipeline in PIPELINES:
                    task = {
                        "pipeline": pipeline,
                        "name": name,
                        "root": str(root),
                        "workers": workers,
                    }
                    task |= {"batch": options.batch, "seconds": options.seconds}
                    rows.append(measure_in_new_process(task) | {"jpeg_bytes": size})
                    print(f"  {pipeline:10s} {workers} workers: {_rates(rows[-1])}", flush=True)
    print(_table(rows))
    utils.write_text(
        Path(options.out), json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1)
    )


def make(root: Path, name: str) -> int:
    """Makes a folder of images and prepares it; returns the mean size of a JPEG in bytes."""
    import tensorflow_datasets as tfds

    from tfds_builders import common
    from tfds_builders.folder_semi import FolderSemi

    tfds.disable_progress_bar()
    of = SETS[name]
    size = photos.make_folder(
        root / "photos", of["shape"], count=of["count"], labelled=_LABELLED, classes=of["classes"]
    )
    prepared = common.prepare(FolderSemi(root / "photos", data_dir=root / "prepared"))
    (root / "prepared.txt").write_text(str(prepared))
    return size


def measure_in_new_process(task: dict[str, Any]) -> dict[str, Any]:
    """What `_measure` returns for a task; an accelerator is left alone."""
    command = [sys.executable, "-m", "benchmarks.input_pipeline", f"--measure={json.dumps(task)}"]
    result = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return json.loads(result.stdout.splitlines()[-1])


def _measure(
    *, pipeline: str, name: str, root: str, workers: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Rates and memory of one pipeline, after a few batches of warm-up."""
    opened = _ours if pipeline == "ours" else _host_views
    stream = opened(name, Path(root), workers, batch)
    for _ in range(3 * workers):
        next(stream)
    with _Memory() as memory:
        cpu, start, batches = _processor_seconds(), time.monotonic(), 0
        while time.monotonic() - start < seconds:
            next(stream)
            batches += 1
        wall, cpu = time.monotonic() - start, _processor_seconds() - cpu
    stream.close()
    crops = batches * batch * host_views.CROPS
    return {
        "pipeline": pipeline,
        "set": name,
        "workers": workers,
        "batch": batch,
        "crops_per_second": crops / wall,
        "crops_per_core_second": crops / cpu,
        "cores_busy": cpu / wall,
        "peak_memory_mb": memory.peak / 1e6,
    }


def _ours(name: str, root: Path, workers: int, batch: int) -> Any:
    from semivl_jax.data.crops import Geometry
    from semivl_jax.data.pipeline import TrainPipeline
    from semivl_jax.data.source import open_source
    from semivl_jax.types import Stream

    of = SETS[name]
    source = open_source((root / "prepared.txt").read_text(), "train")
    pipeline = TrainPipeline(
        source,
        range(_LABELLED),
        range(_LABELLED, of["count"]),
        batch=batch,
        geometry=Geometry(crop=of["crop"], resize=of["rule"]),
        seed=0,
        streams=(Stream("unlabelled", crops=2),),
        workers=workers,
    )
    return pipeline.batches(0)


def _host_views(name: str, root: Path, workers: int, batch: int) -> Any:
    of = SETS[name]
    images = sorted((root / "photos/images/train").iterdir())
    masks = root / "photos/masks/train"
    job = host_views.Job(
        labelled=[(path, masks / f"{path.stem}.png") for path in images[:_LABELLED]],
        unlabelled=images[_LABELLED:],
        rule=of["rule"],
        crop=of["crop"],
        batch=batch,
    )
    return host_views.Loader(job, workers)


def _family() -> Iterator[Path]:
    """/proc folders of this process and its descendants."""
    todo = [os.getpid()]
    while todo:
        entry = Path(f"/proc/{todo.pop()}")
        try:
            tasks = list((entry / "task").iterdir())
            todo += [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield entry


def _processor_seconds() -> float:
    ticks = 0
    for entry in _family():
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system time
    return ticks / os.sysconf("SC_CLK_TCK")


def _proportional_bytes(entry: Path) -> int:
    """Memory of a process; shared pages are divided among the processes that share them."""
    with contextlib.suppress(OSError):  # the process may have ended
        for line in (entry / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class _Memory:
    """Measures the memory of all processes twice a second; `peak` in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, sum(map(_proportional_bytes, _family())))
            if self._stop.wait(0.5):
                return

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _rates(row: dict[str, Any]) -> str:
    return (
        f"{row['crops_per_second']:.0f} crops/s, {row['crops_per_core_second']:.0f} per core second, "
        f"{row['peak_memory_mb']:.0f} MB"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown; `times` is the rate per core divided by that of the other pipeline."""
    lines = [
        "| photos | workers | pipeline | crops/s | crops/s per core | times | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        (base,) = (
            other["crops_per_core_second"]
            for other in rows
            if other["pipeline"] == PIPELINES[1]
            and (other["set"], other["workers"]) == (row["set"], row["workers"])
        )
        lines.append(
            f"| {row['set']} | {row['workers']} | {row['pipeline']} | {row['crops_per_second']:.1f} | "
            f"{row['crops_per_core_second']:.1f} | {row['crops_per_core_second'] / base:.2f} | "
            f"{row['peak_memory_mb']:.0f} MB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
