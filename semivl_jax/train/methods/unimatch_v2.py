"""UniMatch V2: two strong views whose features lose complementary channels (arXiv 2410.10777)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array

from semivl_jax.train.augment import channel_dropout
from semivl_jax.train.methods.consistency import Consistency
from semivl_jax.types import Features, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniMatchV2(Consistency):
    """A channel that one strong view drops is doubled in the other."""

    view_shares: ClassVar[dict[str, float]] = {"s1": 0.5, "s2": 0.5}

    def noise(self, key: Key, count: int) -> dict[str, Array]:
        """Which channels are dropped, image by image."""
        return channel_dropout.draw_complementary(key, count)

    def perturb(
        self, noise: dict[str, Array], features: dict[str, Features]
    ) -> dict[str, Features]:
        """Scales the channels of s1 and s2."""
        scaled = {
            view: channel_dropout.scale_channels(features[view], noise, view=i)
            for i, view in enumerate(("s1", "s2"))
            if view in features
        }
        return features | scaled
