"""Where the windows of an image lie, and how their logits become scores of label pixels. Host, NumPy.

Every evaluation mode (METHOD 7; `shifted_sliding_window` is UniMatch V2's) is a product of two axes: windows
are all pairs of a row span and a column span, and everything that happens to a window's logits between the
network and the label's grid (resize from the crop's square to the window, placing it, dividing by the
visits, resize to the label) is one matrix per axis, float32 [output pixels, crop].
The scores of an output pixel are then

    Σ over windows  rows @ logits @ colsᵀ              where logits are averaged
    Σ over windows  softmax(rows @ logits @ colsᵀ)     where probabilities are summed

because a probability is only ever copied to its place, and copying commutes with the softmax. Image sizes
live in the matrices, not in shapes that a compiler sees. For a network whose logits have the window's size
already (`via_square` off), the first resize is the identity and `crop` in the above the window's length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from semivl_jax.models.resize import resize_matrix

MODES = (
    "zegclip_sliding_window",
    "sliding_window",
    "shifted_sliding_window",
    "padded_sliding_window",
    "original",
    "center_crop",
)
STRIDED = ("zegclip_sliding_window", "padded_sliding_window")
"""Modes whose stride is an option."""
TWO_THIRDS = ("sliding_window", "shifted_sliding_window")
"""Modes whose stride is two thirds of the crop."""
SUMS_PROBABILITIES = (*TWO_THIRDS, "padded_sliding_window")
"""Modes that sum softmax over windows; their output has the size of the image (METHOD 9, trap 15)."""

RESIZES_SCORES = ("zegclip_sliding_window", "original")
"""Modes that average logits and resize them to the label's size."""


@dataclass(frozen=True)
class Span:
    """A window along one axis: it shows image pixels [start, start + length).

    `window` >= length is what the network is to see: the rest is zero padding of the mode itself.
    """

    start: int
    length: int
    window: int


@dataclass(frozen=True)
class Axis:
    """All spans along one axis and, for each, its part in every output pixel.

    float32 [length, crop], or [length, window] for logits of the window's size.
    """

    spans: tuple[Span, ...]
    length: int
    weights: tuple[np.ndarray, ...]


def resolve_stride(mode: str, stride: float | None, *, crop: int) -> int | None:
    """Stride in pixels: a value below 1 is a fraction of the crop; None for modes of one window.

    `TWO_THIRDS` have their own. Raises ValueError for an unknown mode or a stride that leaves gaps.
    """
    if mode not in MODES:
        raise ValueError(f"evaluation.mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
    if mode not in STRIDED:
        return crop * 2 // 3 if mode in TWO_THIRDS else None
    if stride is None:
        raise ValueError(
            f"evaluation.mode={mode!r} needs evaluation.stride: set it, 426 for crop 512"
        )
    pixels = int(crop * stride) if 0 < stride < 1 else int(stride)
    if not 1 <= pixels <= crop or (stride >= 1 and pixels != stride):
        raise ValueError(
            f"evaluation.stride={stride}: choose whole pixels from 1 to the crop ({crop}), or a "
            "fraction of the crop between 0 and 1"
        )
    return pixels


def spans(mode: str, length: int, *, crop: int, stride: int | None) -> tuple[Span, ...]:
    """The windows along an axis of `length` image pixels, in order."""
    if mode == "original":
        return (Span(0, length, length),)
    if mode == "center_crop":
        side = min(length, crop)
        return (Span((length - side) // 2, side, side),)
    if mode in ("zegclip_sliding_window", "shifted_sliding_window"):
        # The last window is shifted back inside; an axis shorter than the crop has one window.
        side = min(length, crop)
        count = math.ceil((length - side) / stride) + 1
        return tuple(Span(min(i * stride, length - side), side, side) for i in range(count))
    padded = mode == "padded_sliding_window"
    lengths = ((start, min(crop, length - start)) for start in range(0, length, stride))
    return tuple(Span(start, size, crop if padded else size) for start, size in lengths)


def output_length(mode: str, image: int, label: int, *, crop: int) -> int:
    """Length of the score map along an axis where image and label have these lengths.

    Raises ValueError where the mode cannot score a label whose size is not the image's.
    """
    if image != label and mode not in RESIZES_SCORES:
        raise ValueError(
            f"evaluation.mode={mode!r} scores pixels of the image ({image}), the label has {label}: give "
            f"both the same size, or choose {' or '.join(RESIZES_SCORES)}"
        )
    return min(image, crop) if mode == "center_crop" else label


def axis(
    mode: str,
    image: int,
    label: int,
    *,
    crop: int,
    stride: int | None,
    part: tuple[int, int] | None = None,
    via_square: bool = True,
) -> Axis:
    """Spans and weights of an axis of `image` pixels whose label has `label` pixels.

    With `part` = (start, stop) only those output pixels and the spans that reach them, so that the
    matrices of a long axis need not exist at once. `via_square`: the network's logits have the crop's size,
    not that of their window.
    """
    side = crop if via_square else None
    length = output_length(mode, image, label, crop=crop)
    start, stop = part or (0, length)
    windows = spans(mode, image, crop=crop, stride=stride)
    if mode == "center_crop":
        weights = tuple(_to_window(span, side)[start:stop] for span in windows)
        return Axis(windows, stop - start, weights)
    visits = np.zeros(image, np.float32)
    for span in windows:
        visits[span.start : span.start + span.length] += 1
    if mode in SUMS_PROBABILITIES:
        visits[:] = 1
    final = None
    if length != image:
        final = resize_matrix(
            image, length, method="bilinear", align_corners=True, rows=(start, stop)
        )
        touched = np.flatnonzero(final.any(axis=0))
        first, last = touched[0], touched[-1] + 1
    else:
        first, last = start, stop
    windows = tuple(w for w in windows if w.start < last and w.start + w.length > first)
    weights = tuple(_weights(span, visits, final, (start, stop), side) for span in windows)
    return Axis(windows, stop - start, weights)


def tile_rows(
    weights: Float32[np.ndarray, "length logits"], tile: int, *, side: int
) -> Float32[np.ndarray, "{side} logits"] | None:
    """The rows of tile number `tile`, zero beyond the axis; None where the window has no part in it."""
    part = weights[tile * side : (tile + 1) * side]
    if not part.any():
        return None
    if len(part) == side:
        return part
    return np.concatenate([part, np.zeros((side - len(part), part.shape[1]), np.float32)])


def network_length(window: int, *, crop: int, patch: int | None) -> int:
    """Length of what the network is fed for a window: rounded up to whole patches.

    The tower pads with zeros in the same way, so windows with one patch grid share one shape. A full
    window stays as it is. With `patch` None windows are not padded at all.
    """
    if patch is None or window == crop:
        return window
    rounded = -(-window // patch) * patch
    return min(rounded, crop) if window < crop else rounded


def _to_window(span: Span, side: int | None) -> np.ndarray:
    """From `side` logits (None: as many as the window has pixels) to the image pixels of the window.

    The second resize of METHOD 3.10: from the crop's square to the window's own length.
    """
    if side is None or span.window == side:
        return np.eye(span.length, span.window, dtype=np.float32)
    resize = resize_matrix(side, span.window, method="bilinear", align_corners=False)
    return resize[: span.length]


def _weights(
    span: Span,
    visits: np.ndarray,
    final: np.ndarray | None,
    part: tuple[int, int],
    side: int | None,
) -> np.ndarray:
    inside = slice(span.start, span.start + span.length)
    share = _to_window(span, side) / visits[inside, None]
    if final is not None:
        return final[:, inside] @ share
    start, stop = part
    first, last = max(span.start, start), min(span.start + span.length, stop)
    weights = np.zeros((stop - start, share.shape[1]), np.float32)
    weights[first - start : last - start] = share[first - span.start : last - span.start]
    return weights
