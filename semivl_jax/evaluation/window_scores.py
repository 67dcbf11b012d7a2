"""Runs the windows of many images through a network and adds up the scores of each image, in tiles.

In: images [h, w, 3] of any size, uint8 RGB or float32 normalised, with the size of their score maps. Out, in
order: the score map in blocks of bounded memory, each as float32 tiles [side, side, n] on the device (beyond
the map a tile holds zeros). All compiled functions have fixed shapes:

- the network sees [window_batch, crop, crop, 3], windows of different images side by side, a last batch
  filled up with zeros. A window smaller than the crop (of a small image, at the border in the mode
  `sliding_window`), or another image in the mode `original`, costs one compilation per distinct patch grid;
- the logits of one window are added to one tile by two matrix products whose matrices come from the host
  (sliding_window.py), whatever the size of the image; once more per shape where logits have their window's
  size.

On several devices of this process the window batch is split over them, and so are the columns of every
tile. At most two window batches and a bounded number of tiles exist at a time.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, UInt8

from semivl_jax.evaluation.sliding_window import Axis, SlidingWindow, Span, tile_rows
from semivl_jax.types import IMAGENET_MEAN, IMAGENET_STD, PyTree

Tag = TypeVar("Tag")
Apply = Callable[[PyTree, jax.Array], jax.Array]
Request = tuple[np.ndarray, tuple[int, int], Tag]
"""Image, (rows, columns) of its score map, anything that comes back with the scores."""

TILES_PER_WINDOW = 4
"""Bound of the tiles in flight, as a multiple of the window batch (one block may need more)."""
BLOCK_BYTES = 1 << 30
"""Bound of the scores of one block; a block is at least one tile."""


@dataclass(eq=False)
class Block(Generic[Tag]):
    """A part of the score map of an image: `place` in a map of `size`; `last` of its image or not.

    `tiles` hold the sums over the windows that were run so far, `waiting` windows are still to run.
    """

    tag: Tag
    image: np.ndarray
    size: tuple[int, int]
    place: tuple[slice, slice]
    last: bool
    axes: tuple[Axis, Axis]
    waiting: int
    tiles: dict[tuple[int, int], jax.Array] = field(default_factory=dict)

    def gather(self, tiles: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
        """One map [rows, columns, …] of tiles [side, side, …] on the host, in the places of `tiles`."""
        down, right = (max(position[i] for position in tiles) + 1 for i in (0, 1))
        rows = [np.concatenate([tiles[i, j] for j in range(right)], axis=1) for i in range(down)]
        return np.concatenate(rows)[: self.axes[0].length, : self.axes[1].length]


class _Window(NamedTuple):
    """Indices of a row span and a column span of a block."""

    block: Block
    row: int
    column: int


class WindowScores:
    """Score maps of images of any size; network and tile arithmetic are compiled once.

    Args:
        apply: see `Evaluator`.
        window: how images are cut.
        num_classes: n.
        devices: of this process; the window batch is rounded up to a multiple of them.
    """

    def __init__(
        self,
        apply: Apply,
        window: SlidingWindow,
        *,
        num_classes: int,
        devices: Sequence[jax.Device],
    ) -> None:
        self.window_batch = -(-window.window_batch // len(devices)) * len(devices)
        self.side = -(-window.crop // len(devices)) * len(devices)
        self._apply, self._window, self._classes = apply, window, num_classes
        # Data sets repeat a few image sizes.
        self._axis = lru_cache(8)(window.axis)

        mesh = Mesh(np.asarray(devices), ("data",))
        self.replicated = NamedSharding(mesh, P())
        self.tile_sharding = NamedSharding(mesh, P(None, "data"))
        self._split = NamedSharding(mesh, P("data"))
        self._network = jax.jit(self._logits, out_shardings=self.replicated)
        self._blank = jax.jit(self._zeros, out_shardings=self.tile_sharding)
        self._accumulate = jax.jit(self._add, donate_argnums=0, out_shardings=self.tile_sharding)

    def __call__(self, variables: PyTree, requests: Iterable[Request[Tag]]) -> Iterator[Block[Tag]]:
        """Blocks of score maps in the order of the requests."""
        variables = jax.device_put(variables, self.replicated)
        pending: deque[Block] = deque()
        batches: dict[tuple[int, int], list[_Window]] = {}  # by shape, not full yet

        previous: jax.Array | None = None

        def run(shape: tuple[int, int]) -> None:
            nonlocal previous
            logits = self._run(variables, shape, batches.pop(shape))
            # The host is at most one batch ahead of the device, which bounds its memory.
            if previous is not None:
                jax.block_until_ready(previous)
            previous = logits

        def finish() -> Block:
            """The first block, after the part-filled batches that hold windows of it."""
            block = pending[0]
            for shape in [s for s, held in batches.items() if any(w.block is block for w in held)]:
                run(shape)
            return pending.popleft()

        for request in requests:
            for block in self._blocks(*request):
                pending.append(block)
                numbers = (range(len(axis.spans)) for axis in block.axes)
                for row, column in itertools.product(*numbers):
                    window = _Window(block, row, column)
                    shape = self._shape(window)
                    batches.setdefault(shape, []).append(window)
                    if len(batches[shape]) == self.window_batch:
                        run(shape)
                while pending and (not pending[0].waiting or self._is_full(pending)):
                    yield finish()
        while pending:
            yield finish()

    def _blocks(self, image: np.ndarray, size: tuple[int, int], tag: Tag) -> Iterator[Block[Tag]]:
        tile_bytes = self.side * self.side * self._classes * 4
        step = max(1, math.isqrt(BLOCK_BYTES // tile_bytes)) * self.side
        parts = [[(i, min(i + step, n)) for i in range(0, n, step)] for n in size]
        for rows, columns in itertools.product(*parts):
            axes = (
                self._axis(image.shape[0], size[0], rows),
                self._axis(image.shape[1], size[1], columns),
            )
            yield Block(
                tag=tag,
                image=image,
                size=size,
                place=(slice(*rows), slice(*columns)),
                last=(rows[1], columns[1]) == size,
                axes=axes,
                waiting=len(axes[0].spans) * len(axes[1].spans),
            )

    def _is_full(self, pending: Iterable[Block]) -> bool:
        tiles = sum(math.prod(-(-a.length // self.side) for a in b.axes) for b in pending)
        return tiles > TILES_PER_WINDOW * self.window_batch

    def _shape(self, window: _Window) -> tuple[int, int]:
        rows, columns = _spans(window)
        return self._window.network_length(rows.window), self._window.network_length(columns.window)

    def _run(self, variables: PyTree, shape: tuple[int, int], windows: list[_Window]) -> jax.Array:
        batch = np.zeros((self.window_batch, *shape, 3), np.float32)
        for slot, window in zip(batch, windows, strict=False):
            rows, columns = _spans(window)
            pixels = window.block.image[
                rows.start : rows.start + rows.length,
                columns.start : columns.start + columns.length,
            ]
            slot[: rows.length, : columns.length] = (
                normalize(pixels) if pixels.dtype == np.uint8 else pixels
            )
        logits = self._network(variables, jax.device_put(batch, self._split))
        for slot, window in enumerate(windows):
            self._place(logits, slot, window)
        return logits

    def _place(self, logits: jax.Array, slot: int, window: _Window) -> None:
        block = window.block
        rows, columns = (
            self._tile_weights(axis, span)
            for axis, span in zip(block.axes, window[1:], strict=True)
        )
        index = jax.device_put(np.int32(slot), self.replicated)
        columns = {j: jax.device_put(part, self._split) for j, part in columns.items()}
        for i, part in rows.items():
            row_part = jax.device_put(part, self.replicated)
            for j, column_part in columns.items():
                tile = block.tiles.pop((i, j), None)
                tile = self._blank() if tile is None else tile
                block.tiles[i, j] = self._accumulate(tile, logits, index, row_part, column_part)
        block.waiting -= 1

    def _tile_weights(self, axis: Axis, span: int) -> dict[int, np.ndarray]:
        """Matrices of a span for the tiles that it touches, by tile number."""
        tiles = range(-(-axis.length // self.side))
        parts = {i: tile_rows(axis.weights[span], i, side=self.side) for i in tiles}
        return {i: part for i, part in parts.items() if part is not None}

    def _logits(self, variables: PyTree, images: Array) -> Array:
        return self._apply(variables, images).astype(jnp.float32)

    def _zeros(self) -> Array:
        return jnp.zeros((self.side, self.side, self._classes), jnp.float32)

    def _add(
        self,
        tile: Float32[Array, "t t n"],
        logits: Float32[Array, "w y x n"],
        index: Array,
        rows: Float32[Array, "t y"],
        cols: Float32[Array, "t x"],
    ) -> Float32[Array, "t t n"]:
        window = jax.lax.dynamic_index_in_dim(logits, index, keepdims=False)
        exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        scores = exact("ti,iun->tun", rows, exact("uj,ijn->iun", cols, window))
        if self._window.sums_probabilities:
            # Resizing weights sum to 1, so a row of zeros is a pixel outside the window.
            inside = rows.any(axis=1)[:, None, None] & cols.any(axis=1)[None, :, None]
            scores = jnp.where(inside, jax.nn.softmax(scores), 0)
        return tile + scores


def _spans(window: _Window) -> tuple[Span, Span]:
    rows, columns = window.block.axes
    return rows.spans[window.row], columns.spans[window.column]


def normalize(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Pixels -> ImageNet-normalised, on the host."""
    scale = np.float32(255) * np.asarray(IMAGENET_STD, np.float32)
    shift = np.asarray(IMAGENET_MEAN, np.float32) / np.asarray(IMAGENET_STD, np.float32)
    return image.astype(np.float32) / scale - shift
