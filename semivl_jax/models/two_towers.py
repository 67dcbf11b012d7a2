"""A CLIP and a DINO tower side by side: SemiVL on DINO, and the two students of Co2S.

In: images B×H×W×3, normalised with the ImageNet statistics. `TwoTowers` gives the maps of DINO and, after
them, those of CLIP. SemiVL on DINO decodes them as one pyramid: DINO's maps are the skips, CLIP's dense
embedding is compared with texts. Co2S (arXiv 2512.23035) decodes each tower's maps with a decoder of its own
(`TwoDecoders`); `TwoStudents` is the model around both.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from semivl_jax.models.resize import bilinear
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.models.vlg_decoder import VLGDecoder
from semivl_jax.types import ClassText, Features

STUDENTS = ("clip", "dino")
"""The students of Co2S in the order of their logits."""


class TwoTowers(nn.Module):
    """Features of both towers."""

    clip: VisionTransformer
    dino: VisionTransformer

    via_square = True  # as of `VisionTransformer`

    @property
    def patch_size(self) -> int:
        """Of the coarser tower."""
        return max(self.clip.patch_size, self.dino.patch_size)

    @property
    def padding_patch(self) -> int | None:
        """As of `VisionTransformer`, for towers with the same patches."""
        same = self.clip.padding_patch == self.dino.padding_patch
        return self.clip.padding_patch if same else None

    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """DINO's maps, then CLIP's."""
        towers = (self.dino, self.clip)
        return Features(maps=sum((tower(image, train=train).maps for tower in towers), ()))


class TwoDecoders(nn.Module):
    """A language-guided decoder for each tower; the first `dino_maps` maps are DINO's."""

    clip: VLGDecoder
    dino: VLGDecoder
    dino_maps: int

    @property
    def pool_size(self) -> tuple[int, int] | None:
        """As of `VLGDecoder`."""
        return self.clip.pool_size

    def __call__(
        self, features: Features, text: ClassText, *, train: bool = False
    ) -> Float32[Array, "b y x m"]:
        """Logits of both students one after another, on the grid of CLIP's."""
        dino = features.replace(maps=features.maps[: self.dino_maps])
        clip = features.replace(maps=features.maps[self.dino_maps :])
        first, second = self.clip(clip, text, train=train), self.dino(dino, text, train=train)
        return jnp.concatenate(
            [first, bilinear(second, first.shape[1:3], align_corners=False)], axis=-1
        )


class TwoStudents(SegmentationModel):
    """Two towers with their decoders.

    `decode_grid` gives the logits of both students, m = 2·n, for training. `decode` gives n scores for
    evaluation and prediction: the logits of one student, or the logarithm of the mean of their probabilities.
    """

    output: Literal["mean", "clip", "dino"] = "mean"

    def decode(
        self,
        features: Features,
        text: ClassText | None,
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> Float32[Array, "b _ _ n"]:
        """Features to scores of `size` = (rows, columns); None: of the crop's square."""
        parts = jnp.split(super().decode(features, text, size=size, train=train), 2, axis=-1)
        if self.output != "mean":
            return parts[STUDENTS.index(self.output)]
        logarithms = jnp.stack([jax.nn.log_softmax(part, axis=-1) for part in parts])
        return jax.nn.logsumexp(logarithms, axis=0) - jnp.log(2.0)
