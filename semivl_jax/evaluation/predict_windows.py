"""Label maps and scores of images of any size, with the windows of several images side by side.

In: uint8 RGB images [h, w, 3]. Out, in order: a `Prediction` per image, of the image's own size, computed as
the evaluation does it (METHOD 7). What differs from an `Evaluator`: there is no label, an image of any size
is scored whole, and the memory on the device does not grow with the image, because a large score map is
made block by block.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from semivl_jax.evaluation import sliding_window
from semivl_jax.evaluation.scores import Apply, Part, WindowScores, gather, normalize
from semivl_jax.types import IGNORE_INDEX, PyTree

BLOCK_BYTES = 1 << 30
"""Scores that may lie on the device for one block; a block is at least one tile."""


@dataclass(frozen=True)
class Prediction:
    """Class of every pixel, and the scores behind it where they were asked for.

    Scores are averaged logits in the mode `zegclip_sliding_window`, logits in `original`, and sums of
    probabilities over windows in the others.
    """

    labels: UInt8[np.ndarray, "h w"]
    scores: Float32[np.ndarray, "h w n"] | None


class Predictor:
    """Segments images with `apply(variables, images [w, h, w', 3]) -> logits [w, crop, crop, n]`.

    Args:
        apply, num_classes, crop, patch_size, mode, via_square, stride, window_batch, devices: as of an
            `Evaluator`; with the mode `center_crop` windows slide over the whole image.
        resize: brings an image to the size at which windows slide; only modes that resize scores take it.
        least_side: pixels that a window must have at least along either axis; images and border windows
            that are smaller get a black margin on the right and below, in modes without `resize`.
    """

    def __init__(
        self,
        apply: Apply,
        *,
        num_classes: int,
        crop: int,
        patch_size: int | None,
        mode: str,
        via_square: bool = True,
        stride: float | None,
        window_batch: int,
        least_side: int,
        resize: Callable[[np.ndarray], np.ndarray] | None = None,
        devices: Sequence[jax.Device],
    ) -> None:
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(f"{num_classes} classes: labels are uint8, choose 1 to {IGNORE_INDEX}")
        mode = "zegclip_sliding_window" if mode == "center_crop" else mode
        self._classes, self._crop, self._mode = num_classes, crop, mode
        self._resize = resize if mode in sliding_window.RESIZES_SCORES else None
        self._least = least_side
        self._scores = WindowScores(
            apply,
            num_classes=num_classes,
            crop=crop,
            patch_size=patch_size,
            via_square=via_square,
            mode=mode,
            stride=stride,
            window_batch=1 if mode == "original" else window_batch,
            devices=devices,
        )
        self._argmax = jax.jit(
            lambda tile: tile.argmax(-1).astype(jnp.uint8), out_shardings=self._scores.replicated
        )

    def place(self, variables: PyTree) -> PyTree:
        """Variables on the devices, as a call wants them."""
        return jax.device_put(variables, self._scores.replicated)

    def __call__(
        self, variables: PyTree, images: Iterable[UInt8[np.ndarray, "_ _ 3"]], *, scores: bool
    ) -> Iterator[Prediction]:
        """Predictions in order; images are drawn a little ahead of what is yielded."""
        waiting: deque[_Assembly] = deque()
        for part, tiles in self._scores(variables, self._requests(images, waiting, scores)):
            self._fill(waiting[0], part, tiles)
            if not waiting[0].missing:
                yield waiting.popleft().prediction

    def _requests(
        self, images: Iterable[np.ndarray], waiting: deque[_Assembly], scores: bool
    ) -> Iterator[tuple]:
        for image in images:
            size = image.shape[:2]
            parts = self._blocks(size)
            labels = np.empty(size, np.uint8)
            maps = np.empty((*size, self._classes), np.float32) if scores else None
            waiting.append(_Assembly(Prediction(labels, maps), missing=len(parts)))
            prepared = self._prepared(image)
            # Where scores are not resized, they have the size of the image with its margin.
            scored = size if self._mode in sliding_window.RESIZES_SCORES else prepared.shape[:2]
            for part in parts:
                yield _Normalized(prepared), scored, part, part

    def _prepared(self, image: np.ndarray) -> np.ndarray:
        """At the size of the windows, and with a margin where a window would be too small."""
        if self._resize is not None:
            image = self._resize(image)
        if self._mode != "sliding_window":
            return image
        step = self._crop * 2 // 3
        margins = []
        for length in image.shape[:2]:
            last = length - (length - 1) // step * step  # length of the last window
            margins.append((0, max(0, min(self._least, self._crop) - last)))
        return np.pad(image, (*margins, (0, 0)))

    def _blocks(self, size: tuple[int, int]) -> list[Part]:
        side = self._scores.side
        tiles = max(1, math.isqrt(BLOCK_BYTES // (side * side * self._classes * 4)))
        rows, cols = (
            [(start, min(start + tiles * side, n)) for start in range(0, n, tiles * side)]
            for n in size
        )
        return [(r, c) for r in rows for c in cols]

    def _fill(self, assembly: _Assembly, part: Part, tiles: dict) -> None:
        (top, bottom), (left, right) = part
        place, size = np.s_[top:bottom, left:right], (bottom - top, right - left)
        labels = {position: self._argmax(tile) for position, tile in tiles.items()}
        assembly.prediction.labels[place] = gather(jax.device_get(labels), size)
        if assembly.prediction.scores is not None:
            assembly.prediction.scores[place] = gather(jax.device_get(tiles), size)
        assembly.missing -= 1


@dataclass
class _Assembly:
    """A prediction on its way and the number of its blocks that are still to come."""

    prediction: Prediction
    missing: int = field(kw_only=True)


class _Normalized:
    """An image whose windows are normalised when they are taken: a quarter of the memory."""

    def __init__(self, image: np.ndarray) -> None:
        self._image = image
        self.shape = image.shape

    def __getitem__(self, place: tuple[slice, slice]) -> Float32[np.ndarray, "_ _ 3"]:
        """Pixels of a window."""
        return normalize(self._image[place])
