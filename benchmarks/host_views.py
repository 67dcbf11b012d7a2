"""The published way to feed this method, for comparison: all views on the host, in worker processes.

Per item, with Pillow, NumPy and OpenCV: a labelled crop with its mask; a weak crop and two strong views of an
unlabelled image; the same three from a second decoding, for the CutMix partner. All are normalised float32 in
channels-first order and leave the worker through shared memory, as a torch DataLoader sends them.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from semivl_jax.data import crop_window

CROPS = 3  # labelled, weak, partner
_AHEAD = 2  # batches per worker
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)


Pair = tuple[Image.Image, Image.Image]


def _scaled(rng: np.random.Generator, photo: Image.Image, mask: Image.Image, rule: str) -> Pair:
    shape = photo.height, photo.width
    if rule == "ratio":
        height, width = crop_window.draw_ratio_size(
            rng, shape, long=2048, short=512, scale=(0.5, 2.0)
        )
        photo = Image.fromarray(cv2.resize(np.array(photo), (width, height)))
    else:
        height, width = crop_window.draw_long_side_size(rng, shape, scale=(0.5, 2.0))
        photo = photo.resize((width, height), Image.Resampling.BILINEAR)
    return photo, mask.resize((width, height), Image.Resampling.NEAREST)


def _weak(rng: np.random.Generator, photo: Image.Image, mask: Image.Image, job: Job) -> Pair:
    photo, mask = _scaled(rng, photo, mask, job.rule)
    right, below = max(job.crop - photo.width, 0), max(job.crop - photo.height, 0)
    photo = ImageOps.expand(photo, (0, 0, right, below), fill=0)
    left, top = crop_window.draw_corner(rng, (photo.height, photo.width), crop=job.crop)
    box = (left, top, left + job.crop, top + job.crop)
    photo = photo.crop(box)
    mask = ImageOps.expand(mask, (0, 0, right, below), fill=255).crop(box)
    if rng.random() < 0.5:
        photo, mask = ImageOps.mirror(photo), ImageOps.mirror(mask)
    return photo, mask


def _strong(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    if rng.random() < 0.8:
        changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None]
        for index in rng.permutation(4):
            change = changes[index]
            if change is not None:
                photo = change(photo).enhance(rng.uniform(0.5, 1.5))
                continue
            hue, saturation, value = photo.convert("HSV").split()
            turned = np.array(hue) + np.uint8(int(rng.uniform(-0.25, 0.25) * 255) % 256)
            bands = (Image.fromarray(turned), saturation, value)
            photo = Image.merge("HSV", bands).convert("RGB")
    if rng.random() < 0.2:
        photo = photo.convert("L").convert("RGB")
    if rng.random() < 0.5:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return photo


def _cutmix_box(rng: np.random.Generator, crop: int) -> np.ndarray:
    box = np.zeros((crop, crop), np.float32)
    if rng.random() < 0.5:
        return box
    while True:
        area, ratio = rng.uniform(0.02, 0.4) * crop**2, rng.uniform(0.3, 1 / 0.3)
        wide, tall = int(np.sqrt(area / ratio)), int(np.sqrt(area * ratio))
        x, y = rng.integers(crop, size=2)
        if x + wide <= crop and y + tall <= crop:
            box[y : y + tall, x : x + wide] = 1
            return box


def _tensor(photo: Image.Image) -> np.ndarray:
    scaled = np.array(photo).transpose(2, 0, 1).astype(np.float32) / 255
    return (scaled - _MEAN[:, None, None]) / _STD[:, None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker loads: paths of (image, mask) and of images, and how."""

    labelled: list[tuple[Path, Path]]
    unlabelled: list[Path]
    rule: str
    crop: int
    batch: int

    def slots(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Name → shape and dtype of a batch's arrays."""
        square = (self.batch, self.crop, self.crop)
        image = (self.batch, 3, self.crop, self.crop)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "labelled": (image, np.float32),
            "mask": (square, np.int64),
        }
        for stream in ("unlabelled", "partner"):
            for view in ("weak", "strong1", "strong2"):
                shapes[f"{stream}/{view}"] = (image, np.float32)
            shapes[f"{stream}/void"] = (square, np.int64)
            shapes |= {f"{stream}/{name}": (square, np.float32) for name in ("box1", "box2")}
        return shapes

    def load(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One item."""
        image, mask = self.labelled[rng.integers(len(self.labelled))]
        photo, label = _weak(rng, Image.open(image).convert("RGB"), Image.open(mask), self)
        row = {"labelled": _tensor(photo), "mask": np.array(label).astype(np.int64)}
        path = self.unlabelled[rng.integers(len(self.unlabelled))]
        for stream in ("unlabelled", "partner"):
            photo = Image.open(path).convert("RGB")
            nothing = Image.fromarray(np.zeros((photo.height, photo.width), np.uint8))
            photo, void = _weak(rng, photo, nothing, self)
            row[f"{stream}/weak"] = _tensor(photo)
            row[f"{stream}/void"] = np.array(void).astype(np.int64)
            for view in ("1", "2"):
                row[f"{stream}/strong{view}"] = _tensor(_strong(rng, photo.copy()))
                row[f"{stream}/box{view}"] = _cutmix_box(rng, self.crop)
        return row


class Loader:
    """Worker processes that fill batches in shared memory."""

    def __init__(self, job: Job, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._job, self._turn, self._held = job, 0, None
        self._workers = []
        for seed in range(workers):
            slots = job.slots().values()
            size = sum(np.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in slots)
            memory = context.RawArray("B", int(size) * _AHEAD)
            free, ready = context.SimpleQueue(), context.SimpleQueue()
            process = context.Process(target=_work, args=(job, seed, memory, free, ready))
            process.start()
            for number in range(_AHEAD):
                free.put(number)
            self._workers.append((process, _arrays(job, memory), free, ready))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch; it is valid until the next call."""
        if self._held is not None:
            free, number = self._held
            free.put(number)
        _, slots, free, ready = self._workers[self._turn % len(self._workers)]
        self._turn += 1
        number = ready.get()
        self._held = free, number
        return slots[number]

    def close(self) -> None:
        """Ends the workers."""
        for process, _, free, _ in self._workers:
            free.put(None)
            process.join()


def _arrays(job: Job, memory: Any) -> list[dict[str, np.ndarray]]:
    """Views of the shared memory: the arrays of _AHEAD batches."""
    start, slots = 0, []
    for _ in range(_AHEAD):
        slot = {}
        for name, (shape, dtype) in job.slots().items():
            slot[name] = np.ndarray(shape, dtype, memory, start)
            start += slot[name].nbytes
        slots.append(slot)
    return slots


def _work(job: Job, seed: int, memory: Any, free: Any, ready: Any) -> None:
    cv2.setNumThreads(0)
    slots = _arrays(job, memory)
    rng = np.random.default_rng(seed)
    while (number := free.get()) is not None:
        rows = [job.load(rng) for _ in range(job.batch)]
        for name, array in slots[number].items():
            np.stack([row[name] for row in rows], out=array)
        ready.put(number)
