"""Everything worth measuring on one accelerator, in the order of its worth and within a time limit.

    python -m benchmarks.accelerator --out=runs/accelerator [--minutes=9]
    python -m benchmarks.accelerator --out=runs/accelerator --rows=ADE20K,COCO --again
    JAX_PLATFORMS=cpu python -m benchmarks.accelerator --predict
    JAX_PLATFORMS=cpu python -m benchmarks.accelerator --out=runs/dry --tiny

Rows: differences from the golden numbers of the published implementation, training steps of the published
configurations in bfloat16 with random weights and images, evaluation, prediction, and the input pipeline.
Writes `OUT/accelerator.json` and `OUT/accelerator.md` after every row. A row that does not fit into the
remaining time is skipped; one that fails is recorded with its error, and the next one runs in a new process.
Rows that OUT already holds are not measured again, except with --again. `--tiny` measures the same rows with
small models; `--predict` measures nothing and prints the operations of every training step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import accelerator_rows as measures
from benchmarks import accelerator_table
from semivl_jax import compiled_programs, utils

H200_TFLOP_PER_S = 989.0
"""Dense bfloat16 products, by NVIDIA's data sheet of the H200 SXM (1,979 with sparsity)."""
LEAST_LIMIT = 240.0
"""Seconds that every row may take at least, if they are left: compiling may take minutes."""
FASTEST = 0.5
"""Rows are expected to take at least this share of their `seconds`, however fast the rows before were."""


@dataclasses.dataclass(frozen=True)
class Row:
    """`measure(**options)` in another process; `seconds` are expected on an H200, compilation included."""

    name: str
    measure: Callable[..., dict[str, Any]]
    options: dict[str, Any]
    seconds: float


FULL: dict[str, tuple[str, tuple[str, ...]]] = {
    "voc": ("voc", ()),
    "paper": ("configs/voc.py:92,recipe=paper", ()),
    "ade20k": ("ade20k", ()),
    "coco": ("coco", ()),
    "cityscapes": ("cityscapes", ()),
    "unimatch_v2": ("configs/unimatch_v2.py:voc,92,backbone=dinov2_vitb14", ()),
    "light": ("configs/folder.py:photos,model=light", ()),
}
"""Configuration and changes of every kind of training step."""
_TINY = "configs/tiny.py"
TINY: dict[str, tuple[str, tuple[str, ...]]] = {
    "voc": (_TINY, ()),
    "paper": (_TINY, ("method.teacher=student", "method.cutmix_partner=same_image")),
    "ade20k": (_TINY, ("data.dataset=ade20k",)),
    "coco": (_TINY, ("data.dataset=coco",)),
    "cityscapes": (_TINY, ("data.dataset=cityscapes",)),
    "unimatch_v2": (
        "configs/unimatch_v2.py:voc,92,backbone=dinov2_vitb14",
        ("batch=2", "data.crop=28", "model.tower=tiny", "model.out_indices=(0, 0, 1, 1)",
         "dpt_decoder.channels=8", "dpt_decoder.out_channels=(8, 8, 8, 8)"),
    ),
    "light": ("configs/folder.py:photos,model=light", ("batch=2", "data.crop=33")),
}  # fmt: skip


def all_rows(*, tiny: bool) -> list[Row]:
    """Rows in the order of their worth."""
    steps = 2 if tiny else 20

    def step(name: str, kind: str, seconds: float, *changes: str, **options: Any) -> Row:
        config, own = (TINY if tiny else FULL)[kind]
        changes = ["dtype=bfloat16", *own, *changes]
        options = {"config": config, "changes": changes, "steps": steps} | options
        return Row(name, measures.train, options, seconds)

    voc = {"config": step("", "voc", 0).options["config"], "changes": ["dtype=bfloat16"]}
    images = 3 if tiny else 100
    photo = {"shape": (40, 56) if tiny else (375, 500), "images": images}
    large = {"shape": (40, 56) if tiny else (512, 683), "images": images}
    reading = {"name": "voc", "seconds": 1.0 if tiny else 15.0}
    batches = (4, 6) if tiny else (16, 32)
    return [
        Row("parity float32", measures.parity, {"dtype": "float32"}, 40),
        Row("parity bfloat16", measures.parity, {"dtype": "bfloat16"}, 30),
        step("VOC", "voc", 80),
        step("VOC attention=xla", "voc", 70, attention="xla"),
        step("VOC recipe=paper", "paper", 70),
        step(f"VOC batch={batches[0]}", "voc", 75, f"batch={batches[0]}"),
        step("ADE20K", "ade20k", 80),
        Row("VOC parts", measures.breakdown, voc | {"steps": steps}, 100),
        Row("VOC evaluation", measures.evaluate, voc | photo, 30),
        Row("VOC prediction", measures.predict, voc | large, 30),
        Row("input pipeline", measures.read, reading, 30),
        step("VOC remat=dots", "voc", 70, "model.remat=dots"),
        step("COCO", "coco", 80),
        step("Cityscapes", "cityscapes", 120),
        step(f"VOC batch={batches[1]}", "voc", 75, f"batch={batches[1]}"),
        step("UniMatch V2 DINOv2-B", "unimatch_v2", 70),
        step("EfficientNet-Lite0", "light", 50),
        Row("published PyTorch step", measures.published, {}, 5),
    ]


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.accelerator", __doc__)
    option = command.add_argument
    option("--out", default="runs/accelerator", help="folder of the results")
    option("--minutes", type=float, default=9.0, help="time for everything; default: %(default)s")
    option(
        "--rows", default="", metavar="TEXT,…", help="only rows whose name holds one of the texts"
    )
    option("--again", action="store_true", help="also measure what OUT holds already")
    option("--tiny", action="store_true", help="small models and images, for a dry run on a CPU")
    option("--predict", action="store_true", help="print operations, measure nothing")
    option("--cache", default="", help="folder of compiled programs; default: none is kept")
    return command


def main() -> None:
    """Measures and writes, or predicts and prints."""
    options = parser().parse_args()
    rows = all_rows(tiny=options.tiny)
    wanted = [text for text in options.rows.split(",") if text]
    chosen = {row.name for row in rows if not wanted or any(text in row.name for text in wanted)}
    if not chosen:
        names = "; ".join(row.name for row in rows)
        raise SystemExit(f"error: --rows={options.rows} names no row; the rows are: {names}")
    if options.predict:
        predict([row for row in rows if row.name in chosen])
        return
    out = Path(options.out)
    found = {} if options.again else measured(out / "accelerator.json", tiny=options.tiny)
    with tempfile.TemporaryDirectory() as place:
        measure(
            rows,
            chosen=chosen,
            found=found,
            out=out,
            minutes=options.minutes,
            cache=options.cache or place,
            about={"tiny": options.tiny, "jax": jax.__version__},
        )


def predict(rows: Sequence[Row]) -> None:
    """Prints operations of the training steps, and the least time that they take on an H200."""
    print("| training step | TFLOP | ms at 989 TFLOP/s |\n| --- | --- | --- |")
    for row in rows:
        if row.measure is measures.train:
            options = {key: row.options[key] for key in ("config", "changes")}
            tflop = measures.operations(**options) / 1e12
            least = 1e3 * tflop / H200_TFLOP_PER_S
            print(f"| {row.name} | {tflop:.3g} | {least:.1f} |", flush=True)


def measured(path: Path, *, tiny: bool) -> dict[str, dict[str, Any]]:
    """Results of an earlier call by name of the row; none if it had other sizes."""
    if not path.exists():
        return {}
    report = json.loads(path.read_text(encoding="utf8"))
    if report["tiny"] != tiny:
        return {}
    return {entry["name"]: entry for entry in report["rows"] if entry["status"] == "measured"}


def measure(
    rows: Sequence[Row],
    *,
    chosen: set[str],
    found: dict[str, dict[str, Any]],
    out: Path,
    minutes: float,
    cache: str,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Measures the chosen rows that are not in `found`; writes and returns the report.

    Args:
      rows: all rows of the report.
      chosen: names of rows to measure.
      found: results of an earlier call by name.
      out: folder of the report.
      minutes: time for everything.
      cache: folder of compiled programs.
      about: further entries of the report.
    """
    deadline = time.monotonic() + 60 * minutes
    entries = [
        {"name": row.name, "kind": row.measure.__name__, "status": "waiting"} for row in rows
    ]
    report = about | {"minutes": minutes, "rows": entries}
    expected = taken = 0.0  # of measured rows, in seconds
    with Worker(cache) as worker:
        for row, entry in zip(rows, entries, strict=True):
            left = deadline - time.monotonic()
            needed = row.seconds * max(FASTEST, taken / expected if expected else 1.0)
            if row.name in found:
                entry |= found[row.name]
            elif row.name not in chosen:
                entry["status"] = "not chosen"
            elif needed > left:
                entry |= {
                    "status": "skipped",
                    "error": f"takes about {needed:.0f} s, and {max(left, 0):.0f} s are left",
                }
            else:
                start = time.monotonic()
                entry |= worker.measure(row, min(left, max(LEAST_LIMIT, 4 * needed)))
                entry["seconds"] = time.monotonic() - start
                if entry["status"] == "measured":
                    expected, taken = expected + row.seconds, taken + entry["seconds"]
                print(f"{row.name}: {accelerator_table.sentence(entry)}", flush=True)
            write(report, out)
    return report


def write(report: dict[str, Any], out: Path) -> None:
    """The report as JSON and as Markdown."""
    utils.write_text(out / "accelerator.json", json.dumps(report, indent=1) + "\n")
    utils.write_text(out / "accelerator.md", accelerator_table.format_report(report))


class Worker:
    """A process that measures rows; a row that fails ends it, because it may have lost the device."""

    def __init__(self, cache: str) -> None:
        self._cache = cache
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def measure(self, row: Row, limit: float) -> dict[str, Any]:
        """Status and results of a row; `limit` in seconds."""
        if self._process is None:
            self._pipe, other = self._context.Pipe()
            self._process = self._context.Process(
                target=_work, args=(other, self._cache), daemon=True
            )
            self._process.start()
            other.close()
        self._pipe.send((row.measure, row.options))
        if not self._pipe.poll(limit):
            self._end()
            return {"status": "failed", "error": f"stopped after {limit:.0f} s"}
        try:
            result = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            result = {"status": "failed", "error": f"its process ended with exit code {code}"}
        if result["status"] == "failed":
            self._end()
        return result

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # ended, or not yet a group of its own
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _work(pipe: Any, cache: str) -> None:
    """Measures what comes through the pipe until it is closed; leads a group of processes."""
    os.setpgrp()
    compiled_programs.use_cache(cache)
    while True:
        try:
            measure, options = pipe.recv()
        except EOFError:
            return
        try:
            result = {"status": "measured", **measure(**options)}
        except measures.NotRunError as error:
            result = {"status": "not run", "error": str(error)}
        except Exception as error:
            result = {"status": "failed", "error": _first_sentence(error)}
        pipe.send(result)
        jax.clear_caches()
        gc.collect()


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:240]


if __name__ == "__main__":
    main()
