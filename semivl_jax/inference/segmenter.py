"""Segmentation in three lines of Python.

    from semivl_jax import Segmenter

    segmenter = Segmenter.load("runs/photos")
    segmentation = segmenter("photo.jpg")
    segmentation.overlay().save("overlay.png")

Images are paths, Pillow images, or uint8 RGB arrays [h, w, 3]; results have their size.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import jax
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from semivl_jax import utils
from semivl_jax.data import images as images_lib
from semivl_jax.evaluation import visualize
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.inference.load import Model, open_model
from semivl_jax.text import class_names
from semivl_jax.types import IGNORE_INDEX

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray

OVERLAY_SIDE = 2048
"""Longer side of an overlay; larger images are reduced for it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for one image.

    Attributes:
      labels: class of every pixel, an index into `names`.
      scores: float32 per pixel and class, in the order of `names` (see `Prediction`); None if not requested.
      names: the classes.
      image: the image itself.
      palette: colour of every class.
    """

    labels: UInt8[np.ndarray, "h w"]
    scores: Float32[np.ndarray, "h w n"] | None
    names: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    palette: UInt8[np.ndarray, "n 3"]

    def overlay(self) -> Image.Image:
        """The image tinted with its classes above a legend of those that occur."""
        image, labels = self.image, self.labels
        if max(labels.shape) > OVERLAY_SIDE:
            factor = OVERLAY_SIDE / max(labels.shape)
            size = tuple(max(1, round(length * factor)) for length in labels.shape)
            image = images_lib.resize_opencv(image, size=size)
            labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
        tinted = visualize.overlay(image, labels, self.palette)
        return Image.fromarray(
            visualize.captioned(tinted, labels, classes=self.names, palette=self.palette)
        )

    def mask(self) -> Image.Image:
        """The labels as a palette image."""
        picture = Image.fromarray(self.labels)
        colours = self.palette.tobytes()
        if (self.labels == IGNORE_INDEX).any():
            # Pillow writes as few bits as the palette needs.
            colours = colours.ljust(3 * (IGNORE_INDEX + 1), b"\xff")
        picture.putpalette(colours)
        return picture

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the labels as a PNG with palette."""
        self.mask().save(path, format="PNG")


class Segmenter:
    """A model that segments images into named classes.

    Args:
      model: network, variables, classes and windows.
      devices: of this process; all of them by default.
      batch: windows per call of the network; default: as in the evaluation of the training.
    """

    def __init__(
        self,
        model: Model,
        *,
        devices: Sequence[jax.Device] | None = None,
        batch: int | None = None,
    ) -> None:
        self.names: tuple[str, ...] = model.info.classes
        self.palette: UInt8[np.ndarray, "n 3"] = model.info.palette
        window = model.window
        if batch is not None:
            window = dataclasses.replace(window, window_batch=batch)
        window = window.for_prediction()
        self._sums_probabilities = window.sums_probabilities
        self._evaluator = Evaluator(
            model.network,
            window,
            num_classes=model.info.num_classes,
            devices=devices,
        )
        self._variables = self._evaluator.place(model.variables)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        classes: class_names.Classes | None = None,
        definitions: str | None = None,
        device: str | None = None,
        batch: int | None = None,
        cache: str = utils.TEXT_CACHE,
        window: int | None = None,
    ) -> Segmenter:
        """Loads a model.

        Args:
          source: working directory of a run or its folder `serving`, `hf://USER/REPO`, or `clip:WEIGHTS`
            (`clip:demo`): the frozen CLIP, which was never trained to segment.
          classes: other classes than those of the training: a list of names, names with their concepts,
            "a, b, c", or a file with one `name` or `name: concept, concept` per line.
          definitions: "concept" or "concept_average": describe classes by their concepts.
          device: cpu, gpu, tpu, …; default: what JAX prefers.
          batch: windows that go through the network at a time.
          cache: folder that keeps text embeddings; empty: none.
          window: side of the windows of `clip:`, in pixels.

        Raises:
          ValueError: what is wrong with one of them, in a sentence.
        """
        devices = find_devices(device)
        with jax.default_device(devices[0]):
            model = open_model(
                source, classes=classes, definitions=definitions, cache=cache, window=window
            )
        return cls(model, devices=devices, batch=batch)

    def __call__(self, image: ImageLike) -> Segmentation:
        """Segments one image; ValueError where it cannot be read."""
        return next(self.segment([image]))

    def segment(
        self, images: Iterable[ImageLike], *, scores: bool = True
    ) -> Iterator[Segmentation]:
        """Segments many images, in order, windows of several side by side.

        Without `scores` the memory per image is a few bytes per pixel; with them it is four more bytes per
        pixel and class.
        """
        waiting: deque[np.ndarray] = deque()

        def read() -> Iterator[np.ndarray]:
            for image in images:
                waiting.append(as_rgb(image))
                yield waiting[-1]

        for found in self._evaluator.predict(self._variables, read(), scores=scores):
            image = waiting.popleft()
            yield Segmentation(found.labels, found.scores, self.names, image, self.palette)

    def probabilities(self, segmentation: Segmentation) -> Float32[np.ndarray, "h w n"]:
        """Class probabilities from the scores of a segmentation of this model."""
        scores = segmentation.scores
        if self._sums_probabilities:
            return scores / scores.sum(-1, keepdims=True)
        shifted = np.exp(scores - scores.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)


def as_rgb(image: ImageLike) -> UInt8[np.ndarray, "h w 3"]:
    """Any accepted kind of image as uint8 RGB, turned upright.

    Raises:
      ValueError: a file that is no image, an array of another kind, or an image that is too small or too
        thin; the file is named.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"array of {image.dtype} and shape {image.shape} is no image; give uint8 RGB [h, w, 3]"
            )
        images_lib.check_size(image)
        return image
    if isinstance(image, Image.Image):
        pixels = images_lib.to_rgb(ImageOps.exif_transpose(image))
        images_lib.check_size(pixels)
        return pixels
    path = Path(image)
    try:
        pixels = images_lib.decode_image(path.read_bytes())
        images_lib.check_size(pixels)
        return pixels
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: {reason}") from error


def find_devices(kind: str | None) -> list[jax.Device]:
    """This process's devices of a kind; ValueError where there is none."""
    if kind is None:
        return jax.local_devices()
    try:
        return jax.local_devices(backend=kind)
    except RuntimeError as error:
        here = ", ".join(sorted({device.platform for device in jax.local_devices()}))
        raise ValueError(
            f"there is no device of the kind {kind!r}, JAX finds {here} here; choose that, or install the "
            "extra for the device"
        ) from error
