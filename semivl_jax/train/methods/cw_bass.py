"""CW-BASS: pseudo-labels weighted by their confidence, class boundaries counted again, adaptive thresholds.

`cw_bass` is the second version (arXiv 2608.12773): a strong view, and again with dropped channels.
`cw_bass_v1` is the first (arXiv 2502.15152): the weak view alone. `cw_bass_semivl` gives the views of SemiVL
the same weights. All rules of `train/thresholds.py` go with all of them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from semivl_jax.train.augment import channel_dropout
from semivl_jax.train.methods.base import Targets
from semivl_jax.train.methods.confidence_weighted import ConfidenceWeighted
from semivl_jax.train.methods.semivl import SemiVL
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.train.thresholds import Rule
from semivl_jax.types import Features, Key, PyTree, Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class CWBass(UniMatch, ConfidenceWeighted):
    """CW-BASS v2: one strong view, and the same features with dropped channels."""

    view_shares: ClassVar[dict[str, float]] = {"s1": 0.5, "fp": 0.5}
    weak_pass: ClassVar[bool] = False

    def targets(
        self, labels: PyTree, views: Views, state: PyTree, progress: Float[Array, ""]
    ) -> Targets:
        """Both have the labels of the strong view."""
        views = views.replace(boxes=views.boxes | {"fp": views.boxes["s1"]})
        return super().targets(labels, views, state, progress)

    def perturb(self, noise: dict[str, Key], features: dict[str, Features]) -> dict[str, Features]:
        """Adds `fp`."""
        if "s1" not in features:
            return features
        masks = self.channel_masks(noise["w"], features["s1"])
        dropped = channel_dropout.drop_channels(features["s1"], masks, rate=self.perturbation_rate)
        return features | {"fp": dropped}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CWBassSemiVL(SemiVL, ConfidenceWeighted):
    """SemiVL with the weights and thresholds of CW-BASS."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CWBassV1(ConfidenceWeighted):
    """CW-BASS v1: teacher and student see the same weak view."""

    threshold: Rule = "dynamic"
    balance_classes: bool = False
    ema_decay: float = 0.999
    unlabelled_weight: float = 1.0
    ramp: float = 0.0625  # share of the training in which that weight rises linearly from 0

    view_shares: ClassVar[dict[str, float]] = {"w": 1.0}
    weak_pass: ClassVar[bool] = True

    def factors(self, progress: Float[Array, ""]) -> dict[str, float | Array]:
        """The labelled loss is not halved."""
        rise = jnp.minimum(1.0, progress / self.ramp) if self.ramp else 1.0
        made = super().factors(progress)
        share = 2 * self.unlabelled_weight * rise
        return {name: 1.0 if name == "loss_x" else share * made[name] for name in made}

    def passes(self, views: Views) -> list[dict[str, Float[Array, "b h w 3"]]]:
        """x and w; there is no strong view."""
        return super().passes(views)[:1]
