"""How an image is cut into windows, and how the logits of the windows become scores. Host, NumPy.

`SlidingWindow` holds every option of it. All evaluation modes (docs/semivl.md 7; `shifted_sliding_window` is
UniMatch V2's) are products of two axes: windows are all pairs of a row span and a column span, and everything
that happens to the logits of a window on their way to the label's grid (resize from the crop's square to the
window, placing, division by the visits, resize to the label) is one matrix per axis, float32 [output pixels,
crop].
The scores of an output pixel are then

    Σ over windows  rows @ logits @ colsᵀ              where logits are averaged
    Σ over windows  softmax(rows @ logits @ colsᵀ)     where probabilities are summed

because a probability is only copied to its place, and copying commutes with the softmax. Image sizes are in
the matrices, not in shapes that are compiled. For a network whose logits have the window's size already
(`via_square` off), the first resize is the identity.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from semivl_jax.data import images
from semivl_jax.models.resize import resize_matrix
from semivl_jax.models.segmentation_model import SegmentationModel

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
"""Modes that sum softmax over windows; their output has the size of the image (docs/semivl.md 9.15)."""
RESIZES_SCORES = ("zegclip_sliding_window", "original")
"""Modes that average logits and resize them to the label's size."""

MAX_ENLARGED_PIXELS = 1 << 25
"""No image is enlarged beyond this many pixels."""
MAX_WHOLE_AREA = 4
"""Prediction in the mode `original` reduces images to this many times the area of the crop."""
_CONVOLUTION_STRIDE = 16


class Span(NamedTuple):
    """A window along one axis: it shows image pixels [start, start + length).

    The network sees `window` >= length pixels: the rest is zero padding of the mode itself.
    """

    start: int
    length: int
    window: int


class Axis(NamedTuple):
    """All spans along one axis and, for each, its weights in the `length` output pixels.

    Weights are float32 [length, crop], or [length, window] for logits of the window's size.
    """

    spans: tuple[Span, ...]
    length: int
    weights: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Options of sliding-window inference; names in messages are those of the configuration.

    Attributes:
        mode: one of `MODES`.
        crop: side of the window, and of the square of the network's logits.
        stride: pixels, or a fraction of the crop if below 1; read in the modes `STRIDED`.
        short_side: images are resized to this short side first; 0: as they are.
        window_batch: windows per call of the network.
        patch_size: windows smaller than the crop are padded with zeros to whole patches, right and below, as
            the tower itself does. None where that would change the logits (see
            `SegmentationModel.padding_patch`).
        least_side: pixels that the network needs along either axis. Smaller images are enlarged; in modes
            without a resize, they and too small border windows get a black margin on the right and below.
        max_pixels: larger images are reduced to this area; 0: no limit. For modes that resize scores.
        via_square: logits have the crop's size, before the resize to the window (docs/semivl.md 3.10), or
            with False the window's own size.

    Raises:
        ValueError: an unknown mode, a stride that leaves gaps, or a resize in a mode that scores the
            pixels of the image.
    """

    mode: str
    crop: int
    stride: float | None = None
    short_side: int = 0
    window_batch: int = 8
    patch_size: int | None = None
    least_side: int = 1
    max_pixels: int = 0
    via_square: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(
                f"evaluation.mode = {self.mode!r} is unknown; choose one of {', '.join(MODES)}"
            )
        if self.window_batch < 1:
            raise ValueError(f"evaluation.window_batch = {self.window_batch} must be 1 or more")
        if self.short_side and not self.resizes_scores:
            raise ValueError(
                f"evaluation.mode = {self.mode!r} scores the pixels of the image, but "
                f"evaluation.short_side = {self.short_side} resizes it; set evaluation.short_side = 0, "
                f"or choose the mode {' or '.join(RESIZES_SCORES)}"
            )
        if self.mode in STRIDED:
            self._check_stride()

    def _check_stride(self) -> None:
        if self.stride is None:
            raise ValueError(
                f"evaluation.mode = {self.mode!r} needs evaluation.stride; set it, 426 for crop 512"
            )
        if self.stride > self.crop:
            raise ValueError(
                f"evaluation.stride = {self.stride} is larger than data.crop = {self.crop}, so windows would "
                "leave gaps; choose at most the crop"
            )
        if not self.pixel_stride or (self.stride >= 1 and self.pixel_stride != self.stride):
            raise ValueError(
                f"evaluation.stride = {self.stride}; choose whole pixels from 1 to the crop ({self.crop}), "
                "or a fraction of the crop between 0 and 1"
            )

    @classmethod
    def from_config(
        cls, config: ConfigDict, model: SegmentationModel | None = None
    ) -> SlidingWindow:
        """The options of `config.evaluation`, and those of a model; ValueError as above."""
        settings = config.evaluation
        window = cls(
            mode=settings.mode,
            crop=config.data.crop,
            stride=settings.stride,
            short_side=settings.short_side,
            window_batch=settings.window_batch,
        )
        if model is None:
            return window
        # A patch, or as many as the decoder pools together (docs/semivl.md 9.4).
        patch = getattr(model.backbone, "patch_size", _CONVOLUTION_STRIDE)
        return dataclasses.replace(
            window,
            patch_size=model.padding_patch,
            least_side=patch * max(getattr(model.decoder, "pool_size", None) or (1,)),
            via_square=model.via_square,
        )

    def for_prediction(self) -> SlidingWindow:
        """For images of any size: `center_crop` becomes sliding windows, `original` has bounded memory."""
        if self.mode == "center_crop":
            stride = min(self.stride or self.crop, self.crop)
            return dataclasses.replace(self, mode="zegclip_sliding_window", stride=stride)
        if self.mode == "original":
            most = MAX_WHOLE_AREA * self.crop**2
            return dataclasses.replace(self, window_batch=1, max_pixels=most)
        return self

    @property
    def pixel_stride(self) -> int | None:
        """Stride in pixels; None for modes of one window."""
        if self.mode in TWO_THIRDS:
            return self.crop * 2 // 3
        if self.mode not in STRIDED:
            return None
        fraction = 0 < self.stride < 1
        return max(int(self.crop * self.stride if fraction else self.stride), 0)

    @property
    def resizes_scores(self) -> bool:
        """Whether the label may have another size than the image."""
        return self.mode in RESIZES_SCORES

    @property
    def sums_probabilities(self) -> bool:
        """Whether scores are sums of softmax over windows, not averaged logits."""
        return self.mode in SUMS_PROBABILITIES

    def prepare(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """The image at the size at which windows are cut, with the margin for the network's least side."""
        if self.resizes_scores:
            image = images.resize_for_windows(
                image, short=self.short_side, least=self.least_side, most=MAX_ENLARGED_PIXELS
            )
            return images.resize_to_area(image, most=self.max_pixels) if self.max_pixels else image
        least = min(self.least_side, self.crop)
        smallest = (min(s.window for s in self.spans(length)) for length in image.shape[:2])
        margins = [(0, max(0, least - window)) for window in smallest]
        return np.pad(image, (*margins, (0, 0))) if np.any(margins) else image

    def output_size(self, image: tuple[int, int], label: tuple[int, int]) -> tuple[int, int]:
        """Size of the score map of an image whose label has a given size.

        Raises:
            ValueError: the mode cannot score a label whose size is not the image's.
        """
        if image != label and not self.resizes_scores:
            raise ValueError(
                f"evaluation.mode = {self.mode!r} scores the pixels of the image {image}, the label has "
                f"{label}; give both the same size, or choose the mode {' or '.join(RESIZES_SCORES)}"
            )
        if self.mode == "center_crop":
            return min(image[0], self.crop), min(image[1], self.crop)
        return label

    def spans(self, length: int) -> tuple[Span, ...]:
        """The windows along an axis of `length` image pixels, in order."""
        crop, stride = self.crop, self.pixel_stride
        side = min(length, crop)
        if self.mode == "original":
            return (Span(0, length, length),)
        if self.mode == "center_crop":
            return (Span((length - side) // 2, side, side),)
        if self.mode in ("zegclip_sliding_window", "shifted_sliding_window"):
            # The last window is shifted back inside; an axis shorter than the crop has one window.
            count = math.ceil((length - side) / stride) + 1
            return tuple(Span(min(i * stride, length - side), side, side) for i in range(count))
        padded = self.mode == "padded_sliding_window"
        lengths = ((start, min(crop, length - start)) for start in range(0, length, stride))
        return tuple(Span(start, size, crop if padded else size) for start, size in lengths)

    def axis(self, image: int, output: int, part: tuple[int, int] | None = None) -> Axis:
        """Spans and weights of an axis of `image` pixels whose score map has `output` pixels.

        Where scores are not resized, the map has no pixels for the margin that `prepare` may have added. With
        `part` = (start, stop) only those output pixels and the spans that reach them.
        """
        start, stop = part or (0, output)
        windows = self.spans(image)
        if self.mode == "center_crop":
            weights = tuple(self._to_window(span)[start:stop] for span in windows)
            return Axis(windows, stop - start, weights)
        visits = np.zeros(image, np.float32)
        for span in windows:
            visits[span.start : span.start + span.length] += 1
        if self.sums_probabilities:
            visits[:] = 1
        # From image pixels to output pixels.
        first, last, final = start, stop, None
        if output != image and self.resizes_scores:
            rows = (start, stop)
            final = resize_matrix(image, output, method="bilinear", align_corners=True, rows=rows)
            touched = np.flatnonzero(final.any(axis=0))
            first, last = touched[0], touched[-1] + 1
        windows = tuple(w for w in windows if w.start < last and w.start + w.length > first)
        weights = tuple(self._weights(span, visits, final, start, stop) for span in windows)
        return Axis(windows, stop - start, weights)

    def network_length(self, window: int) -> int:
        """Length of what the network is fed for a window: rounded up to whole patches.

        The tower pads with zeros in the same way, so windows with one patch grid share one shape. A full
        window stays as it is.
        """
        if self.patch_size is None or window == self.crop:
            return window
        rounded = -(-window // self.patch_size) * self.patch_size
        return min(rounded, self.crop) if window < self.crop else rounded

    def _to_window(self, span: Span) -> np.ndarray:
        """From logits to the image pixels of the window: the second resize of docs/semivl.md 3.10."""
        if not self.via_square or span.window == self.crop:
            return np.eye(span.length, span.window, dtype=np.float32)
        resize = resize_matrix(self.crop, span.window, method="bilinear", align_corners=False)
        return resize[: span.length]

    def _weights(
        self, span: Span, visits: np.ndarray, final: np.ndarray | None, start: int, stop: int
    ) -> np.ndarray:
        inside = slice(span.start, span.start + span.length)
        share = self._to_window(span) / visits[inside, None]
        if final is not None:
            return final[:, inside] @ share
        first, last = max(span.start, start), min(inside.stop, stop)
        weights = np.zeros((stop - start, share.shape[1]), np.float32)
        weights[first - start : last - start] = share[first - span.start : last - span.start]
        return weights


def tile_rows(
    weights: Float32[np.ndarray, "length logits"], tile: int, *, side: int
) -> Float32[np.ndarray, "{side} logits"] | None:
    """The rows of tile number `tile`, zero beyond the axis; None where the window has no part in it."""
    part = weights[tile * side : (tile + 1) * side]
    if not part.any():
        return None
    return np.pad(part, ((0, side - len(part)), (0, 0)))
