"""Convolutions in the form that each kind of machine computes fastest: the one place where it is chosen.

In: maps B×H×W×C and kernels (rows, columns, in, out) of one float dtype. Out: maps of the same dtype. Values
and gradients are those of `jax.lax.conv_general_dilated` up to rounding.

GPUs and TPUs have units and libraries for convolutions and get the plain operation. XLA's convolutions for
CPUs are slow for few channels and for their gradients, which spend most of their time on padding and
transposition; there everything becomes matrix products:

- one input or output channel: all taps side by side in one product (`_Thin`);
- dilated: a product per tap over the pixels that it reaches, none for padding (`_Taps`);
- 3×3 in float32: Winograd's F(2×2, 3×3), 16 products for what takes 36 (`_Winograd`; arXiv 1509.09308).

Pointwise convolutions are products everywhere. `upsampled` joins a transposed convolution of stride 2 with
the 3×3 convolution behind it: both are linear, so a 2×2 convolution of the small map does the work of the
two, with half the operations and no large map between them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.platforms import Derived, Form, by_platform

CHUNK_BYTES = 2**24
"""Intermediate maps are made for so many images at a time, as fit the cache of a CPU."""

Gradients = tuple[Array, Array]


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "s s i o"],
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b _ _ o"]:
    """Convolution with an odd square kernel, padded so that stride 1 keeps the size."""
    size, (rows, cols) = kernel.shape[0], x.shape[1:3]
    # Taps further out than the map is long only ever meet padding. On small maps that is most of
    # a dilated kernel, so they are left out: the same numbers for a part of the work.
    centre = size // 2
    down, across = (min(centre, (side - 1) // dilation) for side in (rows, cols))
    kernel = kernel[centre - down : centre + down + 1, centre - across : centre + across + 1]
    if kernel.shape[:2] == (1, 1):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    form = _form(kernel, stride=stride, dilation=dilation, dtype=x.dtype)
    padding = (down * dilation, across * dilation)
    plain = functools.partial(_plain, stride=stride, dilation=dilation, padding=padding)
    return plain(x, kernel) if form is None else by_platform("cpu", form, Derived(plain), x, kernel)


def upsampled(
    x: Float[Array, "b y x i"],
    up: Float[Array, "2 2 i m"],
    kernel: Float[Array, "3 3 m o"],
) -> Float[Array, "b 2*y 2*x o"]:
    """The 3×3 convolution of the map that a transposed convolution with `up`, stride 2, makes of x.

    Kernels are float32 and joined as such; the arithmetic on maps has x's dtype.
    """
    joined = _joined_kernel(up, kernel).astype(x.dtype)
    plain = functools.partial(_plain, stride=1, dilation=1, padding=(1, 1))
    blocks = by_platform("cpu", _Thin(padding=1), Derived(plain), x, joined)
    # Block i holds rows 2i-1 and 2i of the result, and columns likewise: half a block too much all around.
    b, rows, cols, _ = blocks.shape
    blocks = blocks.reshape(b, rows, cols, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(b, 2 * rows, 2 * cols, -1)[:, 1:-1, 1:-1]


def upsampled_constant(
    value: Float[Array, " m"], kernel: Float[Array, "3 3 m o"], *, size: tuple[int, int]
) -> Float[Array, "1 {size[0]} {size[1]} o"]:
    """The 3×3 convolution of a map of `size` that is `value` everywhere: what a bias becomes."""
    down, across = (_inside(side) for side in size)
    taps = jnp.einsum("m,stmo->sto", value, kernel, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("ys,xt,sto->yxo", down, across, taps)[None]


def _inside(side: int) -> np.ndarray:
    """[side, 3]: 1 where the tap of a pixel lies inside the map."""
    reached = np.arange(side)[:, None] + np.arange(3) - 1
    return ((reached >= 0) & (reached < side)).astype(np.float32)


def _joined_kernel(up: Array, kernel: Array) -> Array:
    """(2, 2, in, 4·out): from the 2×2 pixels around a corner to the 2×2 pixels of the result there."""
    middle, out = kernel.shape[2:]
    # Result row s of a block meets rows s … s+2 of the four that its two pixels become.
    moved = [
        jnp.pad(kernel, ((s, 1 - s), (t, 1 - t), (0, 0), (0, 0)))
        for s in range(2)
        for t in range(2)
    ]
    moved = jnp.stack(moved).reshape(4, 2, 2, 2, 2, middle, out)
    joined = jnp.einsum("quivjmo,ijcm->uvcqo", moved, up, precision=jax.lax.Precision.HIGHEST)
    return joined.reshape(2, 2, up.shape[2], 4 * out)


def _form(kernel: Array, *, stride: int, dilation: int, dtype: DTypeLike) -> Form | None:
    """The CPU's form, None where it is the plain operation, too."""
    if stride > 1:
        return None
    if dilation > 1:
        return _Taps(dilation=dilation)
    if min(kernel.shape[2:]) == 1 and kernel.shape[0] == kernel.shape[1]:
        return _Thin(padding=kernel.shape[0] // 2)
    return _Winograd() if kernel.shape[:2] == (3, 3) and dtype == jnp.float32 else None


def _plain(
    x: Array, kernel: Array, *, stride: int, dilation: int, padding: tuple[int, int]
) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(amount, amount) for amount in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _product(a: Array, b: Array) -> Array:
    """aᵀ b over all pixels: maps of i and of o channels to (i, o)."""
    # As matrices: contracting three axes at once would make XLA transpose both maps first.
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _turned(kernel: Array) -> Array:
    """The kernel of the gradient with respect to the input: point-mirrored, in and out exchanged."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Thin(Form):
    """All taps beside each other as channels of one product; stride 1, the same padding on all sides."""

    padding: int

    def __call__(self, x: Array, kernel: Array) -> Array:
        rows, cols, narrow, wide = kernel.shape
        if wide == 1:
            return self._spread(x, kernel, padding=self.padding)

        def product(x: Array) -> Array:
            return self._gathered(x, (rows, cols), self.padding) @ _flat(kernel)

        return _in_groups(product, x, channels=rows * cols * narrow)

    def gradients(self, x: Array, kernel: Array, out: Array) -> Gradients:
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
        """What every tap sees, (b, h, w, rows·cols·channels)."""
        padded = _pad(x, padding, padding)
        height, width = (
            side - taps + 1 for side, taps in zip(padded.shape[1:3], size, strict=True)
        )
        return jnp.concatenate(
            [
                padded[:, i : i + height, j : j + width]
                for i in range(size[0])
                for j in range(size[1])
            ],
            axis=-1,
        )

    @staticmethod
    def _spread(x: Array, kernel: Array, *, padding: int) -> Array:
        """One product for all taps, whose results are shifted and added."""
        (rows, cols, _, wide), count = kernel.shape, kernel.shape[0] * kernel.shape[1]
        beside = jnp.einsum("bhwi,rio->bhwro", x, kernel.reshape(count, -1, wide))
        height, width = (
            side + 2 * padding - count + 1
            for side, count in zip(x.shape[1:3], (rows, cols), strict=True)
        )
        total = None
        for i in range(rows):
            for j in range(cols):
                part = _shifted(
                    beside[..., i * cols + j, :], i - padding, j - padding, height, width
                )
                total = part if total is None else total + part
        return total


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
class _Taps(Form):
    """A product per tap, over the pixels for which the tap lies inside the map."""

    dilation: int

    def __call__(self, x: Array, kernel: Array) -> Array:
        total = None
        for (i, j), source, _, back in self._visits(x.shape[1:3], kernel.shape):
            part = _pad_back(x[source] @ kernel[i, j], back)
            total = part if total is None else total + part
        return total

    def gradients(self, x: Array, kernel: Array, out: Array) -> Gradients:
        of_x, of_kernel = None, []
        for (i, j), source, target, back in self._visits(x.shape[1:3], kernel.shape):
            mirrored = [(high, low) for low, high in back]
            part = _pad_back(out[target] @ kernel[i, j].T, mirrored)
            of_x = part if of_x is None else of_x + part
            of_kernel.append(_product(x[source], out[target]))
        return of_x, jnp.stack(of_kernel).reshape(kernel.shape)

    def _visits(self, sides: tuple[int, ...], size: tuple[int, ...]) -> list[tuple]:
        """Per tap: its index, the pixels it reads, those it writes, and what these lack of the map."""
        visits = []
        for i in range(size[0]):
            for j in range(size[1]):
                moves = [
                    (index - taps // 2) * self.dilation
                    for index, taps in zip((i, j), size, strict=False)
                ]
                source, target, back = [slice(None)], [slice(None)], []
                for move, side in zip(moves, sides, strict=True):
                    source.append(slice(max(0, move), side + min(0, move)))
                    target.append(slice(max(0, -move), side + min(0, -move)))
                    back.append((max(0, -move), max(0, move)))
                visits.append(((i, j), tuple(source), tuple(target), back))
        return visits


def _pad_back(x: Array, amounts: list[tuple[int, int]]) -> Array:
    return jnp.pad(x, ((0, 0), *amounts, (0, 0)))


# Winograd's matrices for 2×2 results of a 3×3 kernel. Those of maps are in the sums of _Winograd.
_KERNEL_MATRIX = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Winograd(Form):
    """3×3, stride 1, padding 1: 4×4 inputs become 2×2 results by 16 products of transformed maps."""

    def __call__(self, x: Array, kernel: Array) -> Array:
        factors, (rows, cols) = self._transformed_kernel(kernel), x.shape[1:3]
        results = functools.partial(self._results, factors=factors)
        out = _in_groups(results, _even(x), channels=4 * max(kernel.shape[2:]))
        return out[:, :rows, :cols]

    def gradients(self, x: Array, kernel: Array, out: Array) -> Gradients:
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
        """16 maps of half the size: what the results' gradients are to the 16 products."""
        b, rows, cols, channels = out.shape
        out = out.reshape(b, rows // 2, 2, cols // 2, 2, channels)

        def sums(a: Array, b: Array) -> list[Array]:
            return [a, a + b, a - b, -b]

        return [
            s for r in sums(out[:, :, 0], out[:, :, 1]) for s in sums(r[:, :, :, 0], r[:, :, :, 1])
        ]


def _even(x: Array) -> Array:
    """With a row and a column of zeros more where their number is odd."""
    rows, cols = (side % 2 for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, cols), (0, 0))) if rows or cols else x


def _groups(x: Array, count: int) -> Array:
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])


def _group_count(x: Array, channels: int) -> int:
    """How many groups of images to make, so that a group's map of so many channels fits the cache.

    One where the number of images is left open, in a program for export.
    """
    b, rows, cols, _ = x.shape
    if not isinstance(b, int):
        return 1
    fitting = max(1, CHUNK_BYTES // (rows * cols * channels * x.dtype.itemsize))
    return next(count for count in range(-(-b // fitting), b + 1) if b % count == 0)


def _in_groups(function: Callable[[Array], Array], x: Array, *, channels: int) -> Array:
    """function(x), a group of images after the other."""
    count = _group_count(x, channels)
    if count == 1:
        return function(x)
    out = jax.lax.map(function, _groups(x, count))
    return out.reshape(-1, *out.shape[2:])


def _summed_groups(
    function: Callable[[Array, Array], Gradients], x: Array, out: Array, *, channels: int
) -> Gradients:
    """function(x, out), a group of images after the other; the second result is a sum over images."""
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
