"""Runs the windows of many images through the network and adds up each image's scores, in tiles.

In: float32 normalised images of any size, with the size that their scores must have. Out, per image and in
order: float32 tiles [side, side, n] on the device that cover the score map (beyond it a tile holds zeros,
or softmax sums of nothing). All compiled functions have fixed shapes:

- the network sees [window_batch, crop, crop, 3], windows of different images side by side, a last batch
  filled up with zeros; a window smaller than the crop (of a small image, at the border in the mode
  `sliding_window`) or another image in the mode `original` costs one compilation per distinct patch grid;
- one window's logits are added to one tile by two matrix products whose matrices come from the host
  (sliding.py), whatever the image's size; once more per shape where logits have their window's size.

On several devices of this process the window batch is split over them, and so are the columns of every
tile. At most two window batches and a bounded number of tiles exist at a time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, UInt8

from semivl_jax.evaluation import sliding_window
from semivl_jax.types import IMAGENET_MEAN, IMAGENET_STD, PyTree

Tag = TypeVar("Tag")
Tiles = dict[tuple[int, int], jax.Array]
Part = tuple[tuple[int, int], tuple[int, int]]
"""(start, stop) of rows and of columns of a score map."""


@runtime_checkable
class Pixels(Protocol):
    """An image float32 [h, w, 3], normalised: an array, or something that makes windows when asked."""

    shape: tuple[int, ...]

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Pixels of a window."""
        ...


Request = tuple[Pixels, tuple[int, int], Tag] | tuple[Pixels, tuple[int, int], Tag, Part]
Apply = Callable[[PyTree, jax.Array], jax.Array]

TILES_PER_WINDOW = 4
"""Bound of the tiles in flight, as a multiple of the window batch (one image may need more)."""


@dataclass(eq=False)
class _Flight(Generic[Tag]):
    """An image on its way: its windows still to run, and the tiles as far as they are summed."""

    image: Pixels
    axes: tuple[sliding_window.Axis, sliding_window.Axis]
    tag: Tag
    tile_count: int
    waiting: int
    tiles: Tiles = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Window:
    """A pair of spans, by number, of an image."""

    flight: _Flight
    row: int
    col: int


class WindowScores:
    """Network and tile arithmetic compiled once, for any images and any values of the variables."""

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
        devices: Sequence[jax.Device],
        via_square: bool = True,
    ) -> None:
        if window_batch < 1:
            raise ValueError(f"evaluation.window_batch={window_batch}: choose at least 1")
        pixels = sliding_window.resolve_stride(mode, stride, crop=crop)
        self.compilations: Counter[str] = Counter()
        self.window_batch = -(-window_batch // len(devices)) * len(devices)
        self.side = -(-crop // len(devices)) * len(devices)
        self._apply, self._classes, self._crop = apply, num_classes, crop
        self._patch, self._mode = patch_size, mode
        # Data sets repeat a few image sizes: a small cache saves most of the matrix building.
        axis = partial(sliding_window.axis, mode, crop=crop, stride=pixels, via_square=via_square)
        self._axis = lru_cache(8)(axis)

        mesh = Mesh(np.asarray(devices), ("data",))
        self.replicated = NamedSharding(mesh, P())
        self.tile_sharding = NamedSharding(mesh, P(None, "data"))
        self._split = NamedSharding(mesh, P("data"))
        self._network = jax.jit(self._logits, out_shardings=self.replicated)
        self._blank = jax.jit(self._zeros, out_shardings=self.tile_sharding)
        self._accumulate = jax.jit(self._add, donate_argnums=0, out_shardings=self.tile_sharding)

    def __call__(
        self, variables: PyTree, requests: Iterable[Request[Tag]]
    ) -> Iterator[tuple[Tag, Tiles]]:
        """Scores for requests of (image [h, w, 3], size of the label, tag), in their order.

        A request may name a part of the score map as its fourth entry: its tiles cover that part alone.
        `variables` must lie on this object's devices (`replicated`).
        """
        flying: deque[_Flight] = deque()
        bins: dict[tuple[int, int], list[_Window]] = {}
        pace = _Pace()
        for request in requests:
            flight = self._launch(*request)
            flying.append(flight)
            for window in _windows(flight):
                shape = self._shape(window)
                bins.setdefault(shape, []).append(window)
                if len(bins[shape]) == self.window_batch:
                    self._run(variables, shape, bins.pop(shape), pace)
            while flying and (not flying[0].waiting or self._is_full(flying)):
                self._finish(variables, flying[0], bins, pace)
                first = flying.popleft()
                yield first.tag, first.tiles
        while flying:
            self._finish(variables, flying[0], bins, pace)
            first = flying.popleft()
            yield first.tag, first.tiles

    def output_size(self, image: tuple[int, int], label: tuple[int, int]) -> tuple[int, int]:
        """Size of the score map of an image whose label has a given size."""
        return tuple(
            sliding_window.output_length(self._mode, *lengths, crop=self._crop)
            for lengths in zip(image, label, strict=True)
        )

    def _launch(
        self, image: Pixels, size: tuple[int, int], tag: Tag, part: Part | None = None
    ) -> _Flight:
        axes = tuple(
            self._axis(length, scored, part=piece)
            for length, scored, piece in zip(
                image.shape[:2], size, part or (None, None), strict=True
            )
        )
        tiles = int(np.prod([-(-a.length // self.side) for a in axes]))
        windows = int(np.prod([len(a.spans) for a in axes]))
        return _Flight(image=image, axes=axes, tag=tag, tile_count=tiles, waiting=windows)

    def _is_full(self, flying: Sequence[_Flight]) -> bool:
        return sum(f.tile_count for f in flying) > TILES_PER_WINDOW * self.window_batch

    def _finish(self, variables: PyTree, flight: _Flight, bins: dict, pace: _Pace) -> None:
        """Runs the part-filled batches that hold windows of this image."""
        if not flight.waiting:
            return
        for shape in [s for s, held in bins.items() if any(w.flight is flight for w in held)]:
            self._run(variables, shape, bins.pop(shape), pace)

    def _shape(self, window: _Window) -> tuple[int, int]:
        rows, cols = _spans(window)
        return tuple(
            sliding_window.network_length(span.window, crop=self._crop, patch=self._patch)
            for span in (rows, cols)
        )

    def _run(
        self, variables: PyTree, shape: tuple[int, int], windows: list[_Window], pace: _Pace
    ) -> None:
        batch = np.zeros((self.window_batch, *shape, 3), np.float32)
        for slot, window in zip(batch, windows, strict=False):
            rows, cols = _spans(window)
            slot[: rows.length, : cols.length] = window.flight.image[
                rows.start : rows.start + rows.length, cols.start : cols.start + cols.length
            ]
        logits = self._network(variables, jax.device_put(batch, self._split))
        for slot, window in enumerate(windows):
            self._place(logits, slot, window)
        # The host may run ahead of the device by one batch, or its memory would fill.
        pace.wait(logits)

    def _place(self, logits: jax.Array, slot: int, window: _Window) -> None:
        flight = window.flight
        rows, cols = (
            _tile_parts(a, i, self.side)
            for a, i in zip(flight.axes, (window.row, window.col), strict=True)
        )
        index = jax.device_put(np.int32(slot), self.replicated)
        cols_on_device = {j: jax.device_put(part, self._split) for j, part in cols.items()}
        for i, part in rows.items():
            row_part = jax.device_put(part, self.replicated)
            for j, col_part in cols_on_device.items():
                tile = flight.tiles.pop((i, j), None)
                tile = self._blank() if tile is None else tile
                flight.tiles[i, j] = self._accumulate(tile, logits, index, row_part, col_part)
        flight.waiting -= 1

    def _logits(self, variables: PyTree, images: Array) -> Array:
        self.compilations["network"] += 1
        return self._apply(variables, images).astype(jnp.float32)

    def _zeros(self) -> Array:
        self.compilations["tiles"] += 1
        return jnp.zeros((self.side, self.side, self._classes), jnp.float32)

    def _add(
        self,
        tile: Float32[Array, "t t n"],
        logits: Float32[Array, "w y x n"],
        index: Array,
        rows: Float32[Array, "t y"],
        cols: Float32[Array, "t x"],
    ) -> Float32[Array, "t t n"]:
        self.compilations["tiles"] += 1
        window = jax.lax.dynamic_index_in_dim(logits, index, keepdims=False)
        exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        scores = exact("ti,iun->tun", rows, exact("uj,ijn->iun", cols, window))
        if self._mode in sliding_window.SUMS_PROBABILITIES:
            # Resizing weights sum to 1, so a row of zeros is a pixel outside the window.
            inside = rows.any(axis=1)[:, None, None] & cols.any(axis=1)[None, :, None]
            scores = jnp.where(inside, jax.nn.softmax(scores), 0)
        return tile + scores


class _Pace:
    """Lets the host prepare one batch while the device works on another, no more."""

    def __init__(self) -> None:
        self._previous: jax.Array | None = None

    def wait(self, current: jax.Array) -> None:
        if self._previous is not None:
            jax.block_until_ready(self._previous)
        self._previous = current


def _windows(flight: _Flight) -> Iterator[_Window]:
    for row in range(len(flight.axes[0].spans)):
        for col in range(len(flight.axes[1].spans)):
            yield _Window(flight, row, col)


def _spans(window: _Window) -> tuple[sliding_window.Span, sliding_window.Span]:
    rows, cols = window.flight.axes
    return rows.spans[window.row], cols.spans[window.col]


def _tile_parts(axis: sliding_window.Axis, span: int, side: int) -> dict[int, np.ndarray]:
    """Matrices of a span for the tiles that it touches, by tile number."""
    tiles = range(-(-axis.length // side))
    parts = {i: sliding_window.tile_rows(axis.weights[span], i, side=side) for i in tiles}
    return {i: part for i, part in parts.items() if part is not None}


def gather(tiles: dict[tuple[int, int], np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """One map [rows, columns, …] of tiles [side, side, …] that came to the host."""
    down, right = (max(position[i] for position in tiles) + 1 for i in (0, 1))
    rows = [np.concatenate([tiles[i, j] for j in range(right)], axis=1) for i in range(down)]
    return np.concatenate(rows)[: size[0], : size[1]]


def normalize(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """An image as the network wants it, on the host."""
    scale = np.float32(255) * np.asarray(IMAGENET_STD, np.float32)
    shift = np.asarray(IMAGENET_MEAN, np.float32) / np.asarray(IMAGENET_STD, np.float32)
    return image.astype(np.float32) / scale - shift
