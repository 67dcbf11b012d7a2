"""Labelled crops that show rare classes: which image a crop is taken of, and which class it must show.

In: pixels per label value of every labelled image. Out: for a global index an image and a class, or nothing:
then image and place are those of uniform sampling.

The rule is that of DAFormer (Hoyer et al., CVPR 2022, section 3.3): class c is drawn with a probability in
proportion to exp((1 − f_c) / T), where f_c is its share of the labelled pixels and T = 0.01; then an image
uniformly from those that show the class. The crop is placed around one of its pixels instead of being
drawn until it has enough of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from semivl_jax.data.sampler import generator

_TEMPERATURE = 0.01


@dataclasses.dataclass(frozen=True)
class RareClassSampler:
    """Draws image and class of a share of the labelled crops.

    Attributes:
      share: of the crops that are drawn by class, in [0, 1].
      images: by class, positions in the labelled list of the images that show it, int64 [n].
      cumulative: probability of every class and those before it, float64 [K].
      seed: of the run.
    """

    share: float
    images: tuple[np.ndarray, ...]
    cumulative: np.ndarray
    seed: int

    @classmethod
    def from_counts(
        cls,
        counts: Sequence[Mapping[int, int]],
        *,
        num_classes: int,
        share: float,
        seed: int,
    ) -> RareClassSampler:
        """For labelled images with these pixels per label value; some pixel is of a class."""
        pixels = np.array([[image.get(c, 0) for c in range(num_classes)] for image in counts])
        frequency = pixels.sum(0) / pixels.sum()
        cumulative = np.cumsum(np.exp(-frequency / _TEMPERATURE) * (frequency > 0))
        return cls(
            share=share,
            images=tuple(np.flatnonzero(column) for column in pixels.T),
            cumulative=cumulative / cumulative[-1],  # ends with exactly 1
            seed=seed,
        )

    def __call__(self, global_index: int) -> tuple[int, int] | None:
        """Position in the labelled list and class at a global index; None: as without this rule."""
        uniform, of_class, of_image = generator(
            self.seed, "labelled/rare classes", global_index
        ).random(3)
        if uniform >= self.share:
            return None
        value = int(np.searchsorted(self.cumulative, of_class, side="right"))
        images = self.images[value]
        return int(images[int(of_image * len(images))]), value
