"""From a place in the stream to crops: what the worker processes run.

In: the local number of an image in the stream. Out: a dict of NumPy arrays,

    labelled/image    uint8 [s, s, 3]      labelled/label   uint8 [s, s], 255 = void or padding
    unlabelled/image  uint8 [s, s, 3]      unlabelled/size  int32 [2], rows and columns that are image
    partner/…         as unlabelled: an independent crop of the same photo, if asked for

Scale and place of every crop come from (seed, stream, global place) alone. Mirroring, colours and blur
are the device's work. Imports NumPy-only modules: nothing here may start a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from semivl_jax.data import images, window
from semivl_jax.data.sampler import SampleOrder, Share, Stream, generator
from semivl_jax.data.source import Source

Scale = Literal["ratio", "long_side"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """Random scale, then pad and crop (METHOD 6).

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
        self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray | None
    ) -> images.Crop:
        """Scale and crop an image uint8 [h, w, 3] and its label uint8 [h, w], if there is one.

        Raises:
          ValueError: the label has another size than the image.
        """
        shape, scale = image.shape[:2], (self.scale_min, self.scale_max)
        if self.resize == "ratio":
            size = window.draw_ratio_size(
                rng, shape, long=self.ratio_long, short=self.ratio_short, scale=scale
            )
            cut = window.crop_opencv
        else:
            size = window.draw_long_side_size(rng, shape, scale=scale)
            cut = window.crop_pillow
        left, top = window.draw_corner(rng, size, crop=self.crop)
        return cut(image, label, size=size, crop=self.crop, left=left, top=top)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropLoader:
    """Loads the crops that belong to one place of the stream; picklable.

    Attributes:
      source: the training images.
      labelled: record indices of the labelled images, int64 [n].
      unlabelled: record indices of the unlabelled images; empty = labelled images only.
      order: which image stands where.
      share: the places that this process loads.
      geometry: how photos become crops.
      with_partner: cut a second crop from every unlabelled photo.
    """

    source: Source
    labelled: np.ndarray
    unlabelled: np.ndarray
    order: SampleOrder
    share: Share
    geometry: Geometry
    with_partner: bool

    def records(self, local: int) -> tuple[int, int | None]:
        """Record indices (labelled, unlabelled) of the `local`-th image of this process's stream."""
        place = self.share.place(local)
        labelled = int(self.labelled[self.order.labelled(place)])
        if not len(self.unlabelled):
            return labelled, None
        return labelled, int(self.unlabelled[self.order.unlabelled(place)])

    def __call__(self, local: int) -> dict[str, np.ndarray]:
        """Crops of the `local`-th images; see the module's docstring.

        Raises:
          ValueError: an image or label that cannot be used; the message names it.
        """
        place = self.share.place(local)
        labelled, unlabelled = self.records(local)
        crops = self._guarded(labelled, self._load_labelled, place)
        if unlabelled is not None:
            crops |= self._guarded(unlabelled, self._load_unlabelled, place)
        return crops

    def _guarded(
        self, index: int, load: Callable[[int, int], dict[str, np.ndarray]], place: int
    ) -> dict[str, np.ndarray]:
        """Name the image in every error, and make it one that travels between processes."""
        try:
            return load(index, place)
        except Exception as error:
            name = self.source.ids[index]
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise ValueError(
                f"training image {name!r} of {self.source.directory} cannot be used: {reason}"
            ) from error

    def _load_labelled(self, index: int, place: int) -> dict[str, np.ndarray]:
        record = self.source[index]
        image = images.decode_image(record.image)
        label = images.decode_label(record.label)
        images.check_labels(label, num_classes=self.source.info.num_classes)
        crop = self.geometry(self._rng(Stream.LABELLED_GEOMETRY, place), image, label)
        return {"labelled/image": crop.image, "labelled/label": crop.label}

    def _load_unlabelled(self, index: int, place: int) -> dict[str, np.ndarray]:
        image = images.decode_image(self.source[index].image)
        crops = self._unlabelled_crop("unlabelled", Stream.UNLABELLED_GEOMETRY, image, place)
        if self.with_partner:
            crops |= self._unlabelled_crop("partner", Stream.PARTNER_GEOMETRY, image, place)
        return crops

    def _unlabelled_crop(
        self, name: str, stream: Stream, image: np.ndarray, place: int
    ) -> dict[str, np.ndarray]:
        crop = self.geometry(self._rng(stream, place), image, None)
        return {f"{name}/image": crop.image, f"{name}/size": np.asarray(crop.size, np.int32)}

    def _rng(self, stream: Stream, place: int) -> np.random.Generator:
        return generator(self.order.seed, stream, place)


@dataclasses.dataclass(frozen=True)
class BatchLoader:
    """Loads this process's share of a whole step: the arrays of `CropLoader`, stacked."""

    loader: CropLoader

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Crops of one step, one row per image.

        Raises:
          ValueError: as `CropLoader`.
        """
        size = self.loader.share.size
        batch: dict[str, np.ndarray] = {}
        for position in range(size):
            # Copied one by one: their memory is used again for the next.
            for name, array in self.loader(step * size + position).items():
                if not position:
                    batch[name] = np.empty((size, *array.shape), array.dtype)
                batch[name][position] = array
        return batch
