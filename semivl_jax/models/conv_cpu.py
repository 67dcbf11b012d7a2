"""Convolutions as matrix products and sums, for CPUs; stride 1 but for `Depthwise`.

In and out as in `conv`. XLA's CPU convolutions are slow for few channels and for gradients;
docs/performance.md has the times of these forms:

    Thin       one input or output channel, and joined upsampling
    PerTap     dilated kernels
    Depthwise  one kernel per channel: a sum over taps, which XLA makes one loop
    Winograd   3×3 in float32 by F(2×2, 3×3): 16 products in place of 36 (arXiv 1509.09308)
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from semivl_jax.models.platforms import Form

CHUNK_BYTES = 2**24
"""Size of intermediate maps that are computed at a time, to fit the cache of a CPU."""

Gradients = tuple[Array, Array]
Padding = tuple[tuple[int, int], tuple[int, int]]
"""Above and below, left and right."""


def _product(a: Array, b: Array) -> Array:
    """aᵀ b over all pixels: maps of i and of o channels to (i, o)."""
    # As matrices: contracting three axes at once would make XLA transpose both maps first.
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _turned(kernel: Array) -> Array:
    """The kernel of the gradient with respect to the input: point-mirrored, in and out exchanged."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thin(Form):
    """One input or output channel: one product for all taps; the same padding on all sides."""

    padding: int

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The convolution."""
        rows, cols, narrow, wide = kernel.shape
        if wide == 1:
            return self._spread(x, kernel, padding=self.padding)

        def product(x: Array) -> Array:
            return self._gathered(x, (rows, cols), self.padding) @ _flat(kernel)

        return _in_groups(product, x, channels=rows * cols * narrow)

    def gradients(self, x: Array, kernel: Array, out: Array) -> Gradients:
        """Gradients of x and kernel."""
        rows, cols, narrow, wide = kernel.shape
        back = rows - 1 - self.padding
        if wide == 1:
            taps = self._gathered(out, (rows, cols), back)
            grad = _product(x, taps).reshape(narrow, rows, cols, 1)[:, ::-1, ::-1]
            return taps @ _flat(_turned(kernel)), grad.transpose(1, 2, 0, 3)

        def both(x: Array, out: Array) -> Gradients:
            of_kernel = _product(self._gathered(x, (rows, cols), self.padding), out)
            return self._spread(out, _turned(kernel), padding=back), of_kernel

        of_x, of_kernel = _summed_groups(both, x, out, channels=rows * cols * narrow)
        return of_x, of_kernel.reshape(kernel.shape)

    @staticmethod
    def _gathered(x: Array, size: tuple[int, int], padding: int) -> Array:
        """The input of every tap, (b, h, w, rows·cols·channels)."""
        padded = _pad(x, padding, padding)
        height, width = (
            side - taps + 1 for side, taps in zip(padded.shape[1:3], size, strict=True)
        )
        taps = [padded[:, i : i + height, j : j + width] for i, j in np.ndindex(size)]
        return jnp.concatenate(taps, axis=-1)

    @staticmethod
    def _spread(x: Array, kernel: Array, *, padding: int) -> Array:
        """One product for all taps, whose results are shifted and added."""
        (rows, cols, _, wide), count = kernel.shape, kernel.shape[0] * kernel.shape[1]
        beside = jnp.einsum("bhwi,rio->bhwro", x, kernel.reshape(count, -1, wide))
        height, width = (
            side + 2 * padding - count + 1
            for side, count in zip(x.shape[1:3], (rows, cols), strict=True)
        )
        return _sum(
            _shifted(beside[..., i * cols + j, :], i - padding, j - padding, height, width)
            for i, j in np.ndindex(rows, cols)
        )


def _sum(parts: Iterable[Array]) -> Array:
    """The sum, without the 0 that Python's `sum` begins with."""
    return functools.reduce(operator.add, parts)


def _flat(kernel: Array) -> Array:
    return kernel.reshape(-1, kernel.shape[3])


def _pad(x: Array, rows: int, cols: int) -> Array:
    return jnp.pad(x, ((0, 0), (rows, rows), (cols, cols), (0, 0)))


def _shifted(x: Array, down: int, across: int, height: int, width: int) -> Array:
    """x[:, y + down, z + across] for a result of the given size, 0 outside (lax.pad also crops)."""
    low = (-down, -across)
    high = (height + down - x.shape[1], width + across - x.shape[2])
    config = ((0, 0, 0), (low[0], high[0], 0), (low[1], high[1], 0), (0, 0, 0))
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerTap(Form):
    """Dilated: a product per tap, over the pixels for which the tap lies inside the map."""

    dilation: int

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The convolution."""
        return _sum(
            _pad_back(x[source] @ kernel[tap], back)
            for tap, source, _, back in self._visits(x.shape[1:3], kernel.shape)
        )

    def gradients(self, x: Array, kernel: Array, out: Array) -> Gradients:
        """Gradients of x and kernel."""
        of_x, of_kernel = [], []
        for tap, source, target, back in self._visits(x.shape[1:3], kernel.shape):
            mirrored = [(high, low) for low, high in back]
            of_x.append(_pad_back(out[target] @ kernel[tap].T, mirrored))
            of_kernel.append(_product(x[source], out[target]))
        return _sum(of_x), jnp.stack(of_kernel).reshape(kernel.shape)

    def _visits(self, sides: tuple[int, ...], size: tuple[int, ...]) -> list[tuple]:
        """Per tap: its index, slices of the pixels it reads and writes, and the padding of the latter."""
        visits = []
        for tap in np.ndindex(size[:2]):
            source, target, back = [slice(None)], [slice(None)], []
            for index, taps, side in zip(tap, size[:2], sides, strict=True):
                move = (index - taps // 2) * self.dilation
                source.append(slice(max(0, move), side + min(0, move)))
                target.append(slice(max(0, -move), side + min(0, -move)))
                back.append((max(0, -move), max(0, move)))
            visits.append((tap, tuple(source), tuple(target), back))
        return visits


def _pad_back(x: Array, amounts: list[tuple[int, int]]) -> Array:
    return jnp.pad(x, ((0, 0), *amounts, (0, 0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depthwise(Form):
    """Every channel has its own kernel."""

    stride: int
    dilation: int
    padding: Padding

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The convolution."""
        reach = self.dilation * (kernel.shape[0] - 1)
        padded = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        rows, cols = ((side - reach - 1) // self.stride + 1 for side in padded.shape[1:3])
        return _sum_of_taps(
            padded, kernel, (rows, cols), stride=self.stride, dilation=self.dilation
        )

    def gradients(self, x: Array, kernel: Array, out: Array) -> Gradients:
        """Gradients of x and kernel."""
        reach, between = self.dilation * (kernel.shape[0] - 1), self.stride - 1
        margins = []
        for side, (low, _), steps in zip(x.shape[1:3], self.padding, out.shape[1:3], strict=True):
            before = reach - low
            margins.append(
                (before, side + reach - before - (steps + between * (steps - 1)), between)
            )
        spread = jax.lax.pad(out, jnp.zeros((), out.dtype), ((0, 0, 0), *margins, (0, 0, 0)))
        turned = kernel[::-1, ::-1]
        of_x = _sum_of_taps(spread, turned, x.shape[1:3], stride=1, dilation=self.dilation)
        return of_x, self._of_kernel(x, kernel, out)

    def _of_kernel(self, x: Array, kernel: Array, out: Array) -> Array:
        """Row by row: a sum per column of the kernel, of all its rows; sums over pixels come last."""
        size, reach = kernel.shape[0], self.dilation * (kernel.shape[0] - 1)
        padded = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        b, rows, cols, channels = out.shape
        across = self.stride * (cols - 1) + 1

        def add_row(sums: list[Array], index: Array) -> tuple[list[Array], None]:
            image, row = index // rows, index % rows
            place = (image, self.stride * row, 0, 0)
            read = jax.lax.dynamic_slice(padded, place, (1, reach + 1, *padded.shape[2:]))
            read = read[0, :: self.dilation].astype(jnp.float32)
            given = jax.lax.dynamic_slice(out, (image, row, 0, 0), (1, 1, cols, channels))[0]
            starts = range(0, reach + 1, self.dilation)
            taps = [read[:, start : start + across : self.stride] for start in starts]
            return [total + tap * given for total, tap in zip(sums, taps, strict=True)], None

        start = [jnp.zeros((size, cols, channels), jnp.float32)] * size
        sums, _ = jax.lax.scan(add_row, start, jnp.arange(b * rows))
        of_kernel = jnp.stack([jnp.sum(total, 1) for total in sums], axis=1)
        return of_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _sum_of_taps(
    padded: Array, kernel: Array, sides: tuple[int, int], *, stride: int, dilation: int
) -> Array:
    """The result of `sides`, added up in float32."""
    down, across = (stride * (side - 1) + 1 for side in sides)

    def part(i: int, j: int) -> Array:
        y, x = i * dilation, j * dilation
        tap = padded[:, y : y + down : stride, x : x + across : stride]
        return tap.astype(jnp.float32) * kernel[i, j][None, None].astype(jnp.float32)

    return _sum(part(i, j) for i, j in np.ndindex(kernel.shape[:2])).astype(padded.dtype)


# Winograd's matrix of kernels for 2×2 results of a 3×3 kernel; those of maps are sums in `Winograd`.
_KERNEL_MATRIX = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Winograd(Form):
    """3×3, stride 1, padding 1: 4×4 inputs become 2×2 results by 16 products of transformed maps."""

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The convolution."""
        factors, (rows, cols) = self._transformed_kernel(kernel), x.shape[1:3]
        results = functools.partial(self._results, factors=factors)
        out = _in_groups(results, _even(x), channels=4 * max(kernel.shape[2:]))
        return out[:, :rows, :cols]

    def gradients(self, x: Array, kernel: Array, out: Array) -> Gradients:
        """Gradients of x and kernel."""
        factors, (rows, cols) = self._transformed_kernel(_turned(kernel)), x.shape[1:3]

        def both(x: Array, out: Array) -> Gradients:
            pairs = zip(self._tiles(x), self._spread(out), strict=True)
            of_factors = jnp.stack([_product(tile, spread) for tile, spread in pairs])
            return self._results(out, factors), of_factors

        of_x, of_factors = _summed_groups(
            both, _even(x), _even(out), channels=4 * max(kernel.shape[2:])
        )
        matrix = jnp.asarray(_KERNEL_MATRIX)
        of_factors = of_factors.reshape(4, 4, *kernel.shape[2:])
        of_kernel = jnp.einsum("ai,bj,abco->ijco", matrix, matrix, of_factors)
        return of_x[:, :rows, :cols], of_kernel

    @staticmethod
    def _transformed_kernel(kernel: Array) -> Array:
        matrix = jnp.asarray(_KERNEL_MATRIX)
        factors = jnp.einsum("ai,bj,ijco->abco", matrix, matrix, kernel)
        return factors.reshape(16, *kernel.shape[2:])

    def _results(self, x: Array, factors: Array) -> Array:
        m = [tile @ factor for tile, factor in zip(self._tiles(x), factors, strict=True)]
        rows = [
            [m[j] + m[4 + j] + m[8 + j] for j in range(4)],
            [m[4 + j] - m[8 + j] - m[12 + j] for j in range(4)],
        ]
        pairs = [jnp.stack([r[0] + r[1] + r[2], r[1] - r[2] - r[3]], axis=3) for r in rows]
        blocks = jnp.stack(pairs, axis=2)
        b, rows, _, cols, _, channels = blocks.shape
        return blocks.reshape(b, 2 * rows, 2 * cols, channels)

    @staticmethod
    def _tiles(x: Array) -> list[Array]:
        """16 maps of half the size: the transformed 4×4 pixels around every 2×2 block."""
        b, rows, cols, channels = x.shape
        x = _pad(x, 1, 1).reshape(b, rows // 2 + 1, 2, cols // 2 + 1, 2, channels)

        def differences(a: Array, b: Array, c: Array, d: Array) -> list[Array]:
            return [a - c, b + c, c - b, b - d]

        by_row = differences(x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1])
        return [
            tile
            for r in by_row
            for tile in differences(
                r[:, :, :-1, 0], r[:, :, :-1, 1], r[:, :, 1:, 0], r[:, :, 1:, 1]
            )
        ]

    @staticmethod
    def _spread(out: Array) -> list[Array]:
        """16 maps of half the size: the gradients of the 16 products from those of the results."""
        b, rows, cols, channels = out.shape
        out = out.reshape(b, rows // 2, 2, cols // 2, 2, channels)

        def sums(a: Array, b: Array) -> list[Array]:
            return [a, a + b, a - b, -b]

        return [
            s for r in sums(out[:, :, 0], out[:, :, 1]) for s in sums(r[:, :, :, 0], r[:, :, :, 1])
        ]


def _even(x: Array) -> Array:
    """Padded with zeros to even numbers of rows and columns."""
    rows, cols = (side % 2 for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, cols), (0, 0))) if rows or cols else x


def _groups(x: Array, count: int) -> Array:
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])


def _group_count(x: Array, channels: int) -> int:
    """Number of groups of images so that a map of `channels` of one group fits `CHUNK_BYTES`.

    1 if the number of images is symbolic (for export).
    """
    b, rows, cols, _ = x.shape
    if not isinstance(b, int):
        return 1
    fitting = max(1, CHUNK_BYTES // (rows * cols * channels * x.dtype.itemsize))
    return next(count for count in range(-(-b // fitting), b + 1) if b % count == 0)


def _in_groups(function: Callable[[Array], Array], x: Array, *, channels: int) -> Array:
    """function(x), one group of images after another."""
    count = _group_count(x, channels)
    if count == 1:
        return function(x)
    out = jax.lax.map(function, _groups(x, count))
    return out.reshape(-1, *out.shape[2:])


def _summed_groups(
    function: Callable[[Array, Array], Gradients], x: Array, out: Array, *, channels: int
) -> Gradients:
    """function(x, out), one group of images after another; the second result is a sum over images."""
    count = _group_count(x, channels)
    if count == 1:
        return function(x, out)

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, Array]:
        of_image, of_all = function(*group)
        return total + of_all, of_image

    groups = (_groups(x, count), _groups(out, count))
    like = jax.eval_shape(lambda pair: function(*pair)[1], jax.tree.map(lambda g: g[0], groups))
    total, of_images = jax.lax.scan(add, jnp.zeros(like.shape, like.dtype), groups)
    return of_images.reshape(-1, *of_images.shape[2:]), total
