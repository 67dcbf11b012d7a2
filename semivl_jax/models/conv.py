"""Convolutions, and the choice of their implementation for each platform.

In: maps B×H×W×C and kernels (rows, columns, in, out) of one float dtype. Out: maps of the same dtype. Values
and gradients are those of `jax.lax.conv_general_dilated` up to rounding.

GPUs and TPUs use that operation, CPUs matrix products (`conv_cpu`). Pointwise convolutions are products
everywhere. `upsampled` joins a transposed convolution of stride 2 with the 3×3 convolution after it into one
2×2 convolution of the small map, with half the operations.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models import conv_cpu
from semivl_jax.models.platforms import Derived, Form, by_platform

Padding = conv_cpu.Padding


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "s s i o"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding | None = None,
) -> Float[Array, "b _ _ o"]:
    """Convolution with an odd square kernel; None: padded so that stride 1 keeps the size."""
    if padding is not None:
        return _plain(x, kernel, stride=stride, dilation=dilation, padding=padding)
    size, (rows, cols) = kernel.shape[0], x.shape[1:3]
    # Taps that only read padding are cut off: on small maps most of a dilated kernel.
    centre = size // 2
    down, across = (min(centre, (side - 1) // dilation) for side in (rows, cols))
    kernel = kernel[centre - down : centre + down + 1, centre - across : centre + across + 1]
    if kernel.shape[:2] == (1, 1):
        x = x[:, ::stride, ::stride]
        # As matrices: XLA's gradient on CPUs is several times slower with three axes of pixels.
        product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return product.reshape(*x.shape[:3], -1)
    form = _form(kernel, stride=stride, dilation=dilation, dtype=x.dtype)
    padding = ((down * dilation,) * 2, (across * dilation,) * 2)
    plain = functools.partial(_plain, stride=stride, dilation=dilation, padding=padding)
    return plain(x, kernel) if form is None else by_platform("cpu", form, Derived(plain), x, kernel)


def depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "s s 1 c"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding,
) -> Float[Array, "b _ _ c"]:
    """Convolution of every channel with its own kernel."""
    form = conv_cpu.Depthwise(stride=stride, dilation=dilation, padding=padding)
    plain = functools.partial(_plain, stride=stride, dilation=dilation, padding=padding)
    return by_platform("cpu", form, Derived(plain), x, kernel)


def upsampled(
    x: Float[Array, "b y x i"],
    up: Float[Array, "2 2 i m"],
    kernel: Float[Array, "3 3 m o"],
) -> Float[Array, "b 2*y 2*x o"]:
    """Transposed convolution of x with `up`, stride 2, then a 3×3 convolution with `kernel`.

    Kernels are joined in float32; the arithmetic on maps has x's dtype.
    """
    joined = _joined_kernel(up, kernel).astype(x.dtype)
    plain = functools.partial(_plain, stride=1, dilation=1, padding=((1, 1), (1, 1)))
    blocks = by_platform("cpu", conv_cpu.Thin(padding=1), Derived(plain), x, joined)
    # Block i holds rows 2i-1 and 2i of the result, and columns likewise: one row too many on every side.
    b, rows, cols, _ = blocks.shape
    blocks = blocks.reshape(b, rows, cols, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(b, 2 * rows, 2 * cols, -1)[:, 1:-1, 1:-1]


def upsampled_constant(
    value: Float[Array, " m"], kernel: Float[Array, "3 3 m o"], *, size: tuple[int, int]
) -> Float[Array, "1 {size[0]} {size[1]} o"]:
    """The 3×3 convolution of a constant map, for the bias of the transposed convolution."""
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
    # Row s of a block reads rows s … s+2 of the four that its two pixels become.
    moved = [
        jnp.pad(kernel, ((s, 1 - s), (t, 1 - t), (0, 0), (0, 0)))
        for s in range(2)
        for t in range(2)
    ]
    moved = jnp.stack(moved).reshape(4, 2, 2, 2, 2, middle, out)
    joined = jnp.einsum("quivjmo,ijcm->uvcqo", moved, up, precision=jax.lax.Precision.HIGHEST)
    return joined.reshape(2, 2, up.shape[2], 4 * out)


def _form(kernel: Array, *, stride: int, dilation: int, dtype: DTypeLike) -> Form | None:
    """The form for CPUs; None for the plain operation."""
    if stride > 1:
        return None
    if dilation > 1:
        return conv_cpu.PerTap(dilation=dilation)
    if min(kernel.shape[2:]) == 1 and kernel.shape[0] == kernel.shape[1]:
        return conv_cpu.Thin(padding=kernel.shape[0] // 2)
    return conv_cpu.Winograd() if kernel.shape[:2] == (3, 3) and dtype == jnp.float32 else None


def _plain(x: Array, kernel: Array, *, stride: int, dilation: int, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )
