"""SemiOVS: a third stream of out-of-distribution images with stored labels (arXiv 2507.03302).

The labels of these images were made once by an open-vocabulary model (`python -m semivl_jax.prepare ood`);
neither student nor teacher changes them. CutMix pastes strong views of the run's own unlabelled images into
those of the further ones, with the teacher's label and confidence.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from semivl_jax.train.augment import channel_dropout, cutmix
from semivl_jax.train.methods.base import Targets
from semivl_jax.train.methods.consistency import Consistency, ImageLabels
from semivl_jax.train.methods.semivl import SemiVL
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.types import (
    IGNORE_INDEX,
    Features,
    Key,
    PseudoLabels,
    PyTree,
    Stream,
    StreamViews,
    Views,
)

SUFFIX = "_ood"
"""Of the names of views and losses of out-of-distribution images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemiOVS(UniMatch):
    """UniMatch with out-of-distribution images: the folder `ood` of `data.extra_sources`."""

    ood_weight: float = 1.0  # of their losses; the sum of all weights stays the same

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ood_weight < 0:
            raise ValueError(f"method.ood_weight = {self.ood_weight} must be 0 or more")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Adds the images with stored labels."""
        return (*super().streams, Stream("ood", source="ood", labels=True))

    def noise(self, key: Key, count: int) -> dict[str, Key]:
        """Adds keys for the dropped channels of the further images."""
        further = jax.random.split(jax.random.fold_in(key, 2), count)
        return super().noise(key, count) | {"w" + SUFFIX: further}

    def perturb(self, noise: dict[str, Key], features: dict[str, Features]) -> dict[str, Features]:
        """Adds `fp_ood`."""
        made = super().perturb(noise, features)
        weak = "w" + SUFFIX
        if weak not in features:
            return made
        masks = self.channel_masks(noise[weak], features[weak])
        dropped = channel_dropout.drop_channels(features[weak], masks, rate=self.perturbation_rate)
        return made | {"fp" + SUFFIX: dropped}

    def passes(self, views: Views) -> list[dict[str, Float[Array, "b h w 3"]]]:
        """The weak view joins the first pass; the strong ones have a pass of their own.

        They are mixed with strong views that CutMix has not changed yet.
        """
        first, strong = super().passes(views)
        own, further = views.streams["unlabelled"], views.streams["ood"]
        mixed = {
            view + SUFFIX: cutmix.mix(box, getattr(further, view), getattr(own, view))
            for view, box in views.boxes.items()
        }
        return [first | {"w" + SUFFIX: further.w}, strong, mixed]

    def targets(
        self,
        labels: list[ImageLabels],
        views: Views,
        state: PyTree,
        progress: Float[Array, ""],
    ) -> Targets:
        """Stored labels outside the boxes, with confidence 1; the teacher's inside."""
        made = super().targets(labels, views, state, progress)
        stored, own = stored_labels(views.streams["ood"]), labels[0].replace(guidance=None)
        by_view = {}
        for view in self.view_shares:
            mixed = stored
            if view in views.boxes:
                mixed = jax.tree.map(functools.partial(cutmix.mix, views.boxes[view]), stored, own)
            name = view + SUFFIX
            by_view[name] = Consistency.view_targets(self, name, mixed, state)  # no guidance
        return made.replace(views=made.views | by_view)

    def factors(self, progress: Float[Array, ""]) -> dict[str, float | Array]:
        """All losses are divided by 2 + `ood_weight` instead of by 2."""
        whole = 2 + self.ood_weight
        made = {name: factor * 2 / whole for name, factor in super().factors(progress).items()}
        further = {
            f"loss_{view}{SUFFIX}": self.ood_weight * share / whole
            for view, share in self.view_shares.items()
        }
        return made | further


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemiOVSSemiVL(SemiVL, SemiOVS):
    """SemiVL with out-of-distribution images, which get no guidance; its factor is not divided."""

    ood_weight: float = 0.5


def stored_labels(crop: StreamViews) -> ImageLabels:
    """The labels that come with images, as certain pseudo-labels; 255 is ignored like padding."""
    pseudo = PseudoLabels(crop.label, jnp.ones(crop.label.shape, jnp.float32))
    return ImageLabels(pseudo, crop.label == IGNORE_INDEX)
