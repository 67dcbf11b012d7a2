"""UniMatch with ZegCLIP's criterion: focal and dice loss of a mask per class.

Source: ZegCLIP (arXiv 2212.03588); docs/semivl.md 8.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from semivl_jax.train.forward import DropoutPasses
from semivl_jax.train.methods.unimatch import UniMatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZegCLIP(UniMatch):
    """All pixels of a pseudo-label count, by the share of confident ones."""

    criterion: Literal["focal_dice"] = "focal_dice"
    dropout_passes: DropoutPasses = "first"
