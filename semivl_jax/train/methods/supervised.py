"""Labelled images only: the baseline of every semi-supervised method."""

from __future__ import annotations

import dataclasses

from semivl_jax.train.methods.base import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Method):
    """No unlabelled image is read; there is no EMA."""
