"""Crops per second per core: this project's pipeline beside one that makes all views on the host.

    python -m benchmarks.input_pipeline --out=input_pipeline.json [--seconds=20 --workers=1,2]

The photos are drawn (`benchmarks.photos`): 500 × 375 for the "ratio" recipe with crops of 512 (Pascal VOC)
and 2048 × 1024 for the "long side" recipe with crops of 801 (Cityscapes), as JPEGs, with PNG masks.
One unit of work is a labelled crop with its mask, the weak crop of an unlabelled photo and the partner's:
three crops. Ours sends them as uint8 and leaves mirroring, colours, blur, boxes and normalisation to the
accelerator; the other (`benchmarks.host_views`) does what the published training does on the host. Every
measurement runs in fresh processes. A core's rate is crops per second of processor time, counted over the
main process and all workers, which other programs on the machine hardly disturb; the wall clock's rate
stands beside it. Memory is the largest sum of proportional set sizes.
"""

from __future__ import annotations

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

from absl import app, flags, logging

from benchmarks import host_views, photos

_OUT = flags.DEFINE_string("out", "input_pipeline.json", "The results as JSON.")
_SECONDS = flags.DEFINE_float("seconds", 20.0, "Length of every measurement.")
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of worker processes.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images of each kind per batch.")
_ONE = flags.DEFINE_string("one", "", "A single measurement as JSON; used by the benchmark itself.")

# name: rows and columns of the photos, rule of the scale, crop, how many photos, classes
SETS: dict[str, dict[str, Any]] = {
    "voc": {"shape": (375, 500), "rule": "ratio", "crop": 512, "count": 64, "classes": 21},
    "cityscapes": {
        "shape": (1024, 2048),
        "rule": "long_side",
        "crop": 801,
        "count": 16,
        "classes": 19,
    },
}
PIPELINES = ("ours", "host views")
_LABELLED = 8


def main(_: list[str]) -> None:
    """Draws the photos, runs every measurement, prints the table, writes the file."""
    if _ONE.value:
        print(json.dumps(_measure(**json.loads(_ONE.value))))
        return
    logging.set_verbosity(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in SETS:
            root = Path(place) / name
            size = _make(root, name)
            print(f"{name}: {SETS[name]['count']} photos, {size / 1000:.0f} kB each", flush=True)
            for workers in map(int, _WORKERS.value):
                for pipeline in PIPELINES:
                    rows.append(_run(pipeline, name, root, workers) | {"jpeg_bytes": size})
                    print(_line(rows[-1]), flush=True)
    print(_table(rows))
    Path(_OUT.value).write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1))


def _make(root: Path, name: str) -> int:
    """Draws a folder and prepares it; returns the mean size of a JPEG."""
    import tensorflow_datasets as tfds

    from tfds_builders import common
    from tfds_builders.folder_semi import FolderSemi

    tfds.disable_progress_bar()
    facts = SETS[name]
    size = photos.make_folder(
        root / "photos",
        facts["shape"],
        count=facts["count"],
        labelled=_LABELLED,
        classes=facts["classes"],
    )
    prepared = common.prepare(FolderSemi(root / "photos", data_dir=root / "prepared"))
    (root / "prepared.txt").write_text(str(prepared))
    return size


def _run(pipeline: str, name: str, root: Path, workers: int) -> dict[str, Any]:
    task = {"pipeline": pipeline, "name": name, "root": str(root), "workers": workers}
    task |= {"batch": _BATCH.value, "seconds": _SECONDS.value}
    command = [sys.executable, "-m", "benchmarks.input_pipeline", f"--one={json.dumps(task)}"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def _measure(
    *, pipeline: str, name: str, root: str, workers: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Rate, processor time and memory of one pipeline, after a warm-up of a few batches."""
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
        "crops": crops,
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

    facts = SETS[name]
    source = open_source((root / "prepared.txt").read_text(), "train")
    pipeline = TrainPipeline(
        source,
        range(_LABELLED),
        range(_LABELLED, facts["count"]),
        batch=batch,
        geometry=Geometry(crop=facts["crop"], resize=facts["rule"]),
        seed=0,
        streams=(Stream("unlabelled", crops=2),),
        workers=workers,
    )
    return pipeline.batches(0)


def _host_views(name: str, root: Path, workers: int, batch: int) -> Any:
    facts = SETS[name]
    images = sorted((root / "photos/images/train").iterdir())
    masks = root / "photos/masks/train"
    job = host_views.Job(
        labelled=[(path, masks / f"{path.stem}.png") for path in images[:_LABELLED]],
        unlabelled=images[_LABELLED:],
        rule=facts["rule"],
        crop=facts["crop"],
        batch=batch,
    )
    return host_views.Loader(job, workers)


def _family() -> Iterator[Path]:
    """/proc entries of this process and everything below it."""
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
    """Memory of a process, pages that several share divided among them."""
    with contextlib.suppress(OSError):  # it may end in this moment
        for line in (entry / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class _Memory:
    """Watches the memory of the whole family twice a second; `peak` in bytes."""

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


def _line(row: dict[str, Any]) -> str:
    return (
        f"  {row['pipeline']:10s} {row['workers']} workers: {row['crops_per_second']:.0f} crops/s, "
        f"{row['crops_per_core_second']:.0f} per core second, {row['peak_memory_mb']:.0f} MB"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown; every pair of rows with the quotient of their rates per core."""
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
    app.run(main)
