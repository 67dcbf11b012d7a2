"""UniMatch with ZegCLIP's criterion: focal and dice loss of a mask per class (arXiv 2212.03588; METHOD 8)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from semivl_jax.train.forward import DropoutPasses
from semivl_jax.train.methods.base import Target, mask_target
from semivl_jax.train.methods.consistency import ImageLabels
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZegCLIP(UniMatch):
    """All pixels of a pseudo-label count, by the share of confident ones."""

    criterion: Literal["focal_dice"] = "focal_dice"
    dropout_passes: DropoutPasses = "first"

    def view_targets(self, view: str, labels: ImageLabels, state: PyTree) -> tuple[Target, ...]:
        """The criterion cannot weight single pixels."""
        scale = self.confident_share(labels, state)
        return (mask_target(f"loss_{view}", labels.pseudo.label, scale),)
