"""Sliding-window inference of a network on images of any size: mIoU and label maps.

In: uint8 RGB images [h, w, 3] and uint8 label maps (255 ignored) from the host. Out: an `Evaluation` with
percentages and the int64 confusion matrix, or a `Prediction` per image. Modes: docs/semivl.md 7.

A process evaluates its own examples on its own devices; the confusion matrices of all processes are then
summed, so several processes may hold different numbers of examples, but all must call `evaluate`.
Variables must lie on devices of this process alone (`train.sharding.local`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int32, Int64, UInt8

from semivl_jax.data import images as images_lib
from semivl_jax.evaluation import confusion as confusion_lib
from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.evaluation.window_scores import Apply, Block, Request, WindowScores
from semivl_jax.train import distributed
from semivl_jax.types import IGNORE_INDEX, PyTree

AHEAD = 4
"""Blocks whose counts may wait on the device, so that the host does not wait for every one."""


@runtime_checkable
class Example(Protocol):
    """A validation image with its ground truth."""

    id: str
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """Result over a set: `iou` and its mean over all classes in percent, and the counts.

    `confusion` has a row per label and a column per prediction. `image_iou` has the mean IoU of the classes
    in an image by id, NaN if all of it is ignored.
    """

    miou: float
    iou: Float64[np.ndarray, " n"]
    confusion: Int64[np.ndarray, "n n"]
    images: int
    image_iou: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """Class of every pixel, and its scores if requested.

    Scores are averaged logits in the mode `zegclip_sliding_window`, logits in `original` and `center_crop`,
    and sums of probabilities over windows in the others.
    """

    labels: UInt8[np.ndarray, "h w"]
    scores: Float32[np.ndarray, "h w n"] | None


class Evaluator:
    """Scores images with `apply(variables, images [w, h, w', 3]) -> logits [w, crop, crop, n]`.

    `apply` gets normalised float32 windows and returns logits of the crop's square, before the resize to
    the window's own size (docs/semivl.md 3.10), or with `window.via_square` off logits of that size
    [w, h, w', n].
    Student and EMA weights are two values of `variables`: evaluating both compiles nothing twice.

    Args:
        apply: the network.
        window: how images are cut into windows.
        num_classes: n, at most 255.
        devices: of this process; all of them by default.

    Raises:
        ValueError: more classes than labels can tell apart.
    """

    def __init__(
        self,
        apply: Apply,
        window: SlidingWindow,
        *,
        num_classes: int,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(f"{num_classes} classes: labels are uint8, choose 1 to {IGNORE_INDEX}")
        self.window, self._classes = window, num_classes
        devices = jax.local_devices() if devices is None else devices
        self._scores = WindowScores(apply, window, num_classes=num_classes, devices=devices)
        replicated = self._scores.replicated
        self._count = jax.jit(self._count_tile, donate_argnums=0, out_shardings=replicated)
        self._argmax = jax.jit(self._label_tile, out_shardings=replicated)

    def place(self, variables: PyTree) -> PyTree:
        """Variables on the devices; else every call copies them."""
        return jax.device_put(variables, self._scores.replicated)

    def evaluate(self, variables: PyTree, examples: Iterable[Example]) -> Evaluation:
        """mIoU over the examples of all processes.

        Raises:
          ValueError: a label has a value that is no class or a size that the mode cannot score, or two
            processes have the same example.
        """
        totals = np.zeros((self._classes, self._classes), np.int64)
        image_iou: dict[str, float] = {}
        images = 0
        for id, counts in self._count_images(variables, examples):
            images += 1
            totals += counts
            image_iou[id] = confusion_lib.image_iou(counts)
        totals, images = distributed.all_sum(totals), int(distributed.all_sum(np.asarray(images)))
        shares = distributed.all_gather_json(image_iou)
        image_iou = {id: score for share in shares for id, score in share.items()}
        if len(image_iou) != sum(map(len, shares)):
            raise ValueError(
                "several processes evaluated the same image; give every process a share of its own"
            )
        per_class = confusion_lib.iou(totals)
        return Evaluation(
            miou=float(per_class.mean()),
            iou=per_class,
            confusion=totals,
            images=images,
            image_iou=image_iou,
        )

    def predict(
        self,
        variables: PyTree,
        images: Iterable[UInt8[np.ndarray, "_ _ 3"]],
        *,
        scores: bool = False,
    ) -> Iterator[Prediction]:
        """Predictions of the images' sizes, in order (mode `center_crop`: of the crop).

        Images are read slightly ahead. Large score maps are computed in blocks, so device memory is bounded.
        """
        requests = (
            (self.window.prepare(image), self.window.output_size(size, size), None)
            for image in images
            for size in [image.shape[:2]]
        )
        labels = maps = None
        for block in self._scores(variables, requests):
            if labels is None:
                labels = np.empty(block.size, np.uint8)
                maps = np.empty((*block.size, self._classes), np.float32) if scores else None
            found = {position: self._argmax(tile) for position, tile in block.tiles.items()}
            labels[block.place] = block.gather(jax.device_get(found))
            if maps is not None:
                maps[block.place] = block.gather(jax.device_get(block.tiles))
            if block.last:
                yield Prediction(labels, maps)
                labels = maps = None

    def _count_images(
        self, variables: PyTree, examples: Iterable[Example]
    ) -> Iterator[tuple[str, Int64[np.ndarray, "n n"]]]:
        """Id and confusion matrix of every image, fetched `AHEAD` blocks late."""
        waiting: deque[tuple[Block, Array]] = deque()
        counts = np.zeros((self._classes, self._classes), np.int64)

        def fetch() -> Iterator[tuple[str, np.ndarray]]:
            nonlocal counts
            block, counted = waiting.popleft()
            counts = counts + jax.device_get(counted)
            if block.last:
                yield block.tag[0], counts
                counts = np.zeros_like(counts)

        for block in self._scores(variables, map(self._request, examples)):
            waiting.append((block, self._count_block(block)))
            if len(waiting) > AHEAD:
                yield from fetch()
        while waiting:
            yield from fetch()

    def _request(self, example: Example) -> Request[tuple[str, np.ndarray]]:
        image, label = example.image, example.label
        try:
            images_lib.check_labels(label, num_classes=self._classes)
            size = self.window.output_size(image.shape[:2], label.shape)
        except ValueError as error:
            raise ValueError(f"{example.id}: {error}") from error
        # Only center_crop scores less than the label, and then its centre.
        top, left = ((n - m) // 2 for n, m in zip(label.shape, size, strict=True))
        label = label[top : top + size[0], left : left + size[1]]
        return self.window.prepare(image), size, (example.id, label)

    def _count_block(self, block: Block) -> Int32[Array, "n n"]:
        """Counts of a block: fewer pixels than 32 bits can count."""
        label, side = block.tag[1][block.place], self._scores.side
        counts = jax.device_put(
            np.zeros((self._classes, self._classes), np.int32), self._scores.replicated
        )
        for (i, j), tile in block.tiles.items():
            # 255 where the tile reaches beyond the label.
            part = np.full((side, side), IGNORE_INDEX, np.uint8)
            inside = label[i * side : (i + 1) * side, j * side : (j + 1) * side]
            part[: inside.shape[0], : inside.shape[1]] = inside
            part = jax.device_put(part, self._scores.tile_sharding)
            counts = self._count(counts, tile, part)
        return counts

    def _count_tile(
        self, counts: Int32[Array, "n n"], tile: Float32[Array, "t t n"], label: UInt8[Array, "t t"]
    ) -> Int32[Array, "n n"]:
        return counts + confusion_lib.count(tile.argmax(-1), label, num_classes=self._classes)

    def _label_tile(self, tile: Float32[Array, "t t n"]) -> UInt8[Array, "t t"]:
        return tile.argmax(-1).astype(jnp.uint8)
