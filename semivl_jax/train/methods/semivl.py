"""SemiVL: UniMatch, and guidance by a frozen CLIP (arXiv 2311.16241; docs/semivl.md 4.3, 4.6 and 4.7)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from semivl_jax.train import losses
from semivl_jax.train.forward import Networks
from semivl_jax.train.losses import GuidanceReduction
from semivl_jax.train.methods.base import Metrics, Target, Targets
from semivl_jax.train.methods.consistency import ImageLabels
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.types import IGNORE_INDEX, PseudoLabels, PyTree, StreamViews, Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemiVL(UniMatch):
    """Every view of an unlabelled image is also compared with confident labels of the frozen CLIP."""

    guidance_threshold: float = 0.9
    guidance_reduction: GuidanceReduction = "mean_all"
    guidance_start: float = 0.1  # factor of the guidance losses, linear from start to end
    guidance_end: float = 0.0

    guided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("guidance_threshold")
        for name in ("guidance_start", "guidance_end"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name} = {getattr(self, name)} must be 0 or more")

    def image_targets(
        self, networks: Networks, crop: StreamViews, pseudo: PseudoLabels
    ) -> ImageLabels:
        """Pseudo-label and guidance label."""
        guidance = networks.guidance(crop.w, crop.ignore, threshold=self.guidance_threshold)
        return ImageLabels(pseudo, crop.ignore, guidance)

    def view_targets(self, view: str, labels: ImageLabels, state: PyTree) -> tuple[Target, ...]:
        """Adds the guidance label."""
        weight = losses.guidance_weights(
            labels.guidance, labels.ignore, reduction=self.guidance_reduction
        )
        guidance = Target(f"guidance_{view}", labels.guidance, weight)
        return (*super().view_targets(view, labels, state), guidance)

    def factors(self, progress: Float[Array, ""]) -> dict[str, float | Array]:
        """Guidance losses have the shares of the views, times the guidance weight."""
        weight = self.guidance_weight(progress)
        shares = {f"guidance_{view}": weight * share for view, share in self.view_shares.items()}
        return super().factors(progress) | shares

    def targets(
        self, labels: list[ImageLabels], views: Views, state: PyTree, progress: Float[Array, ""]
    ) -> Targets:
        """Logs the weight of guidance."""
        targets = super().targets(labels, views, state, progress)
        weight = {"guidance_weight": self.guidance_weight(progress)}
        return targets.replace(metrics=targets.metrics | weight)

    def guidance_weight(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """λ of docs/semivl.md 4.7."""
        return self.guidance_start + (self.guidance_end - self.guidance_start) * progress

    def label_metrics(self, labels: ImageLabels, state: PyTree) -> Metrics:
        """Adds the share of pixels that guidance labels."""
        share = losses.share_of_valid(labels.guidance != IGNORE_INDEX, labels.ignore)
        return super().label_metrics(labels, state) | {"guidance_share": share}

    def image_labels(
        self, networks: Networks, image: Float[Array, "b h w 3"], state: PyTree
    ) -> dict[str, Array]:
        """Adds the guidance label."""
        no_padding = jnp.zeros(image.shape[:3], bool)
        guidance = networks.guidance(image, no_padding, threshold=self.guidance_threshold)
        return super().image_labels(networks, image, state) | {"guidance": guidance}
