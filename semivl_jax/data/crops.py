"""From a global index to crops: what the worker processes run.

In: the local number of an image in the stream. Out: a dict of NumPy arrays, per stream NAME

    NAME/image  uint8 [s, s, 3]     NAME/size   int32 [2], rows and columns that are image (not of "labelled")
    NAME/label  uint8 [s, s], 255 = void or padding, where the stream has labels

The second crop of the same photo is NAME.1/image and so on. Scale and place of every crop come from (seed,
name, global index) alone. Mirroring, colours and blur are the device's work. Imports NumPy-only modules:
nothing here may start a device.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from semivl_jax.data import crop_window, images
from semivl_jax.data.rare_classes import RareClassSampler
from semivl_jax.data.sampler import Sampler, Shard, generator
from semivl_jax.data.source import Source

Scale = Literal["ratio", "long_side"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Random scale, then pad and crop (docs/semivl.md 6).

    Attributes:
      crop: side of the crop in pixels.
      resize: "ratio": fit into ratio_long × ratio_short times a factor from scale_min to scale_max;
        "long_side": the long side becomes itself times such a factor.
    """

    crop: int
    resize: Scale
    ratio_long: int = 2048
    ratio_short: int = 512
    scale_min: float = 0.5
    scale_max: float = 2.0

    def __call__(
        self,
        rng: np.random.Generator,
        image: np.ndarray,
        label: np.ndarray | None,
        shown: int | None = None,
    ) -> images.Crop:
        """Scales and crops an image uint8 [h, w, 3] and its label uint8 [h, w], if there is one.

        With `shown`, the crop shows a pixel of this class, which the label must have.
        """
        shape, scale = image.shape[:2], (self.scale_min, self.scale_max)
        if self.resize == "ratio":
            size = crop_window.draw_ratio_size(
                rng, shape, long=self.ratio_long, short=self.ratio_short, scale=scale
            )
            cut = crop_window.crop_opencv
        else:
            size = crop_window.draw_long_side_size(rng, shape, scale=scale)
            cut = crop_window.crop_pillow
        if shown is None:
            left, top = crop_window.draw_corner(rng, size, crop=self.crop)
        else:
            left, top = crop_window.draw_corner_around(rng, size, label == shown, crop=self.crop)
        return cut(image, label, size=size, crop=self.crop, left=left, top=top)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropLoader:
    """Loads the crops of one stream.

    Attributes:
      source: the images.
      indices: record indices of the stream's list, int64 [n].
      sampler: the order of the list.
      geometry: how photos become crops.
      keys: names of the crops of the same photo.
      labels: whether labels are loaded too.
      rare: chooses image and class of some crops; None: every image as often.
    """

    source: Source
    indices: np.ndarray
    sampler: Sampler
    geometry: Geometry
    keys: tuple[str, ...]
    labels: bool = False
    rare: RareClassSampler | None = None

    def record(self, global_index: int) -> int:
        """Record index of the image at a global index."""
        return self._drawn(global_index)[0]

    def _drawn(self, global_index: int) -> tuple[int, int | None]:
        """Record index of the image, and the class that its crop must show, if any."""
        drawn = self.rare(global_index) if self.rare else None
        position, shown = drawn or (self.sampler(global_index), None)
        return int(self.indices[position]), shown

    def __call__(self, global_index: int) -> dict[str, np.ndarray]:
        """Crops of the image at a global index; see the module's docstring.

        Raises:
          ValueError: an image or label that cannot be used; the message names it.
        """
        record, shown = self._drawn(global_index)
        image, label = self.source.decode(record, label=self.labels)
        arrays: dict[str, np.ndarray] = {}
        for name in self.keys:
            rng = generator(self.sampler.seed, f"{name}/geometry", global_index)
            crop = self.geometry(rng, image, label, shown)
            arrays[f"{name}/image"] = crop.image
            if crop.label is not None:
                arrays[f"{name}/label"] = crop.label
            if name != "labelled":
                arrays[f"{name}/size"] = np.asarray(crop.size, np.int32)
        return arrays


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Loads the crops of all streams for the `local`-th image of a process."""

    streams: tuple[CropLoader, ...]
    shard: Shard

    def __call__(self, local: int) -> dict[str, np.ndarray]:
        """The arrays of every stream; ValueError as `CropLoader`."""
        index = self.shard.global_index(local)
        return {name: array for load in self.streams for name, array in load(index).items()}


@dataclasses.dataclass(frozen=True)
class BatchLoader:
    """Loads this process's share of a whole step: the arrays of `ExampleLoader`, stacked."""

    load: ExampleLoader

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Crops of one step, one row per image; ValueError as `CropLoader`."""
        size = self.load.shard.size
        batch: dict[str, np.ndarray] = {}
        for position in range(size):
            # Copied one by one: their memory is used again for the next.
            for name, array in self.load(step * size + position).items():
                if not position:
                    batch[name] = np.empty((size, *array.shape), array.dtype)
                batch[name][position] = array
        return batch
