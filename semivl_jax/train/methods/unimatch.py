"""UniMatch: two strong views and a perturbation of features (arXiv 2208.09910; docs/semivl.md 4.4)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from semivl_jax.train.augment import channel_dropout
from semivl_jax.train.methods.consistency import Consistency
from semivl_jax.types import Features, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniMatch(Consistency):
    """Strong views s1 and s2, and fp: the weak view whose features lose channels at random."""

    perturbation_rate: float = 0.5  # share of dropped channels

    view_shares: ClassVar[dict[str, float]] = {"s1": 0.25, "s2": 0.25, "fp": 0.5}
    weak_pass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.perturbation_rate < 1:
            raise ValueError(
                f"method.perturbation_rate = {self.perturbation_rate} must be 0 or more and below 1, "
                "where every channel would be dropped"
            )

    def noise(self, key: Key, count: int) -> dict[str, Key]:
        """Keys of the dropped channels of x and of w, image by image."""
        x, w = jax.random.split(key)
        return {"x": jax.random.split(x, count), "w": jax.random.split(w, count)}

    def perturb(self, noise: dict[str, Key], features: dict[str, Features]) -> dict[str, Features]:
        """Adds `fp`, and `x_fp`, which only counts in a decoder's batch statistics (docs/semivl.md 9.7)."""
        if "w" not in features:
            return features
        dropped = {}
        for view, name in (("x", "x_fp"), ("w", "fp")):
            masks = self.channel_masks(noise[view], features[view])
            dropped[name] = channel_dropout.drop_channels(
                features[view], masks, rate=self.perturbation_rate
            )
        return features | dropped

    def channel_masks(self, keys: Key, features: Features) -> channel_dropout.Masks:
        """Channels that are kept."""
        return channel_dropout.channel_masks(keys, features, rate=self.perturbation_rate)
