"""The method's choices, and the parts that a compiled step is made of."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax
from flax import linen as nn

from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.train.param_groups import Group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The method's choices; defaults are SemiVL's with an EMA teacher (METHOD 4 and 8)."""

    total_steps: int
    seed: int = 0
    accumulation: int = 1
    semi_supervised: bool = True
    teacher: Literal["ema", "student"] = "ema"
    ema_decay: float = 0.996
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    partner: Literal["batch", "same_image"] = "batch"
    criterion: Literal["cross_entropy", "ohem", "focal_dice"] = "cross_entropy"
    ohem_threshold: float = 0.7
    ohem_min_kept: int = 100_000
    confidence_mode: Literal["pixelwise", "pixelratio", "pixelavg"] = "pixelwise"
    confidence_threshold: float = 0.95
    strong_views: int = 2
    perturbation: Literal["feature", "complementary", "none"] = "feature"
    perturbation_rate: float = 0.5
    dropout_passes: Literal["none", "first", "all"] = "none"
    guidance: bool = True
    guidance_threshold: float = 0.9
    guidance_reduction: Literal["mean", "mean_valid", "mean_all"] = "mean_all"
    guidance_start: float = 0.1
    guidance_end: float = 0.0

    @property
    def view_weights(self) -> dict[str, float]:
        """Share of every view in the consistency loss, 1 together (METHOD 4.7).

        The strong views share what the perturbed view leaves, if there is one: a half.
        """
        perturbed = {"fp": 0.5} if self.perturbation == "feature" else {}
        share = (1.0 - sum(perturbed.values())) / self.strong_views
        return {f"s{view + 1}": share for view in range(self.strong_views)} | perturbed

    @property
    def student_sees_weak(self) -> bool:
        """Whether the weak view goes through the student: to be perturbed, or to teach itself."""
        return self.teacher == "student" or self.perturbation == "feature"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What is fixed when the step is compiled; groups and schedule only tell the metrics the rates."""

    segmenter: SegmentationModel
    optimizer: optax.GradientTransformation
    recipe: Recipe
    guidance_tower: nn.Module | None = None
    groups: tuple[Group, ...] = ()
    schedule: optax.Schedule | None = None
