"""Evaluation of a network on images of any size: mIoU and label maps.

In: uint8 RGB images [h, w, 3] and uint8 label maps (255 ignored) from the host. Out: an `Evaluation` with
percentages and the int64 confusion matrix, or uint8 label maps. The modes are those of METHOD 7.

A process evaluates its own examples on its own devices; the confusion matrices of all processes are then
summed, so several processes may hold different numbers of examples, but all must call `evaluate`.
Variables must lie on devices of this process alone (`train.sharding.local`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int32, Int64, UInt8

from semivl_jax.evaluation import confusion as counting
from semivl_jax.evaluation import processes, sliding_window
from semivl_jax.evaluation.scores import Apply, WindowScores, gather, normalize
from semivl_jax.types import IGNORE_INDEX, PyTree

MOST_PIXELS = np.iinfo(np.int32).max
"""Pixels counted on the device before the counts move to int64 on the host."""
AHEAD = 4
"""Images whose counts may wait on the device, so that the host does not wait for every one."""


@runtime_checkable
class Example(Protocol):
    """A validation image with its ground truth."""

    id: str
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """Result over a set: `iou` and its mean over all classes in percent, the counts behind them.

    `confusion` has a row per label and a column per prediction. `image_iou` has, by id, the mean IoU of
    the classes that an image shows, NaN where all of it is ignored; of all processes, one after the
    other. `compilations` counts what this evaluator has compiled so far.
    """

    miou: float
    iou: Float64[np.ndarray, " n"]
    confusion: Int64[np.ndarray, "n n"]
    images: int
    image_iou: dict[str, float]
    compilations: int


class Evaluator:
    """Scores images with `apply(variables, images [w, h, w', 3]) -> logits [w, crop, crop, n]`.

    `apply` gets normalised float32 windows and returns logits of the crop's square, before the resize to
    the window's own size (METHOD 3.10), or with `via_square` off logits of that size [w, h, w', n].
    Student and EMA weights are two values of `variables`: evaluating both compiles nothing twice.

    Args:
        apply: the network.
        num_classes: n, at most 255.
        crop: side of the window.
        patch_size: windows smaller than the crop are padded with zeros to whole patches, right and below,
            as the tower itself does. None where that would change the logits (a convolutional encoder, or
            an image that is renormalised): such windows are passed as they are.
        mode: see METHOD 7.
        stride: pixels, or a fraction of the crop; for `zegclip_` and `padded_sliding_window` only.
        window_batch: windows per call of the network, rounded up to a multiple of the devices.
        resize: applied to every image first, to its short side of 512 for example; the label stays.
        devices: of this process; all of them by default.
        via_square: what `apply` returns, see above.

    Raises:
        ValueError: options that contradict each other.
    """

    def __init__(
        self,
        apply: Apply,
        *,
        num_classes: int,
        crop: int,
        patch_size: int | None,
        mode: str,
        stride: float | None,
        window_batch: int,
        resize: Callable[[np.ndarray], np.ndarray] | None = None,
        devices: Sequence[jax.Device] | None = None,
        via_square: bool = True,
    ) -> None:
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(f"{num_classes} classes: labels are uint8, choose 1 to {IGNORE_INDEX}")
        if resize is not None and mode not in sliding_window.RESIZES_SCORES:
            raise ValueError(
                f"evaluation.mode={mode!r} scores pixels of the image, but evaluation.short_side resizes "
                f"it: set short_side to None or choose {' or '.join(sliding_window.RESIZES_SCORES)}"
            )
        self._classes, self._resize = num_classes, resize
        self._scores = WindowScores(
            apply,
            num_classes=num_classes,
            crop=crop,
            patch_size=patch_size,
            mode=mode,
            stride=stride,
            window_batch=window_batch,
            devices=jax.local_devices() if devices is None else devices,
            via_square=via_square,
        )
        replicated = self._scores.replicated
        self._no_counts = jax.jit(self._zero_counts, out_shardings=replicated)
        self._count = jax.jit(self._count_tile, donate_argnums=0, out_shardings=replicated)
        self._argmax = jax.jit(self._label_tile, out_shardings=replicated)

    @property
    def compilations(self) -> int:
        """Compilations so far, each shape of the network counted."""
        return sum(self._scores.compilations.values())

    def evaluate(self, variables: PyTree, examples: Iterable[Example]) -> Evaluation:
        """mIoU over the examples of all processes.

        Raises ValueError for a label with values that are no class or with a size that the mode cannot
        score, naming the example; and for one that two processes have.
        """
        totals = np.zeros((self._classes, self._classes), np.int64)
        image_iou: dict[str, float] = {}
        images = 0
        for id, counts in self._count_images(variables, examples):
            images += 1
            totals += counts
            image_iou[id] = counting.image_iou(counts)
        totals, images = processes.summed(totals), int(processes.summed(np.asarray(images)))
        shares = processes.gathered(image_iou)
        image_iou = {id: score for share in shares for id, score in share.items()}
        if len(image_iou) != sum(map(len, shares)):
            raise ValueError(
                "several processes evaluated the same image; give every process a share of its own"
            )
        per_class = counting.iou(totals)
        return Evaluation(
            miou=float(per_class.mean()),
            iou=per_class,
            confusion=totals,
            images=images,
            image_iou=image_iou,
            compilations=self.compilations,
        )

    def predict(
        self, variables: PyTree, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[UInt8[np.ndarray, "_ _"]]:
        """Label maps of the images' sizes, in order (mode `center_crop`: of the crop)."""
        requests = ((self._prepare(image), image.shape[:2], image.shape[:2]) for image in images)
        for size, tiles in self._scores(self._place(variables), requests):
            labels = {position: self._argmax(tile) for position, tile in tiles.items()}
            yield gather(jax.device_get(labels), self._scores.output_size(size, size))

    def _count_images(
        self, variables: PyTree, examples: Iterable[Example]
    ) -> Iterator[tuple[str, Int64[np.ndarray, "n n"]]]:
        """Id and confusion matrix of every image, fetched a few images late."""
        requests = (self._request(example) for example in examples)
        waiting: deque[tuple[str, np.ndarray, Array]] = deque()
        for (id, label), tiles in self._scores(self._place(variables), requests):
            counts, pixels = self._no_counts(), 0
            before = np.zeros((self._classes, self._classes), np.int64)
            for position, tile in tiles.items():
                part = self._label_part(label, position)
                if pixels + part.size > MOST_PIXELS:  # an entry might overflow
                    before += jax.device_get(counts)
                    counts, pixels = self._no_counts(), 0
                counts = self._count(counts, tile, part)
                pixels += part.size
            waiting.append((id, before, counts))
            if len(waiting) > AHEAD:
                id, before, counts = waiting.popleft()
                yield id, before + jax.device_get(counts)
        for id, before, counts in waiting:
            yield id, before + jax.device_get(counts)

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        """Resized where asked for, and normalised."""
        if self._resize is not None:
            image = self._resize(image)
        return normalize(image)

    def _request(
        self, example: Example
    ) -> tuple[np.ndarray, tuple[int, int], tuple[str, np.ndarray]]:
        counting.check_label(example.label, num_classes=self._classes, source=example.id)
        size = example.label.shape
        try:
            output = self._scores.output_size(example.image.shape[:2], size)
        except ValueError as error:
            raise ValueError(f"{example.id}: {error}") from error
        # Only center_crop scores less than the label, and then its centre.
        (top, left), (rows, cols) = (
            [(n - m) // 2 for n, m in zip(size, output, strict=True)],
            output,
        )
        label = example.label[top : top + rows, left : left + cols]
        return self._prepare(example.image), size, (example.id, label)

    def _label_part(self, label: np.ndarray, position: tuple[int, int]) -> jax.Array:
        """The label under a tile, 255 where the tile reaches beyond it."""
        side = self._scores.side
        part = np.full((side, side), IGNORE_INDEX, np.uint8)
        here = label[tuple(slice(i * side, (i + 1) * side) for i in position)]
        part[: here.shape[0], : here.shape[1]] = here
        return jax.device_put(part, self._scores.tile_sharding)

    def _place(self, variables: PyTree) -> PyTree:
        """Variables on all devices of this process."""
        return jax.device_put(variables, self._scores.replicated)

    def _zero_counts(self) -> Array:
        return jnp.zeros((self._classes, self._classes), jnp.int32)

    def _count_tile(
        self, counts: Int32[Array, "n n"], tile: Float32[Array, "t t n"], label: UInt8[Array, "t t"]
    ) -> Int32[Array, "n n"]:
        self._scores.compilations["confusion"] += 1
        return counts + counting.count(tile.argmax(-1), label, num_classes=self._classes)

    def _label_tile(self, tile: Float32[Array, "t t n"]) -> UInt8[Array, "t t"]:
        self._scores.compilations["labels"] += 1
        return tile.argmax(-1).astype(jnp.uint8)
