"""FixMatch for segmentation: one strong view with CutMix (arXiv 2001.07685, as UniMatch's baseline)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from semivl_jax.train.methods.consistency import Consistency


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixMatch(Consistency):
    """The student must agree with the teacher on one strong view."""

    view_shares: ClassVar[dict[str, float]] = {"s1": 1.0}
