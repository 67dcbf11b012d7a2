"""What the CW-BASS methods share: weights by confidence, class boundaries, adaptive thresholds.

A method of `consistency.py` takes these weights by inheriting from `ConfidenceWeighted` as its last base.
Source: CW-BASS (arXiv 2502.15152), CW-BASS v2 (arXiv 2608.12773).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from semivl_jax.train import losses
from semivl_jax.train.forward import Networks
from semivl_jax.train.label_maps import boundaries, class_weights
from semivl_jax.train.methods.base import Metrics, Setup, Target, Targets
from semivl_jax.train.methods.consistency import Consistency, ImageLabels
from semivl_jax.train.thresholds import Rule, Thresholds
from semivl_jax.types import Key, PyTree, Stream, Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidenceWeighted(Consistency):
    """Losses of pseudo-labels are weighted means over the pixels that reach the threshold of their class."""

    criterion: Literal["cross_entropy", "ohem"] = "cross_entropy"
    confidence_mode: Literal["pixelwise"] = "pixelwise"
    threshold: Rule = "floor"  # see train/thresholds.py; confidence_threshold is that of "fixed"
    threshold_momentum: float = 0.999  # of running confidences
    confidence_exponent: float = 1.0  # weight of a pixel: (decay · confidence) ** exponent
    confidence_decay: float = 1.0
    balance_classes: bool = True  # weights by the inverse frequency of the kept pixels of a class
    boundary_weight: float = 0.5  # of the loss at class boundaries
    # Withhold data.calibration_share of the labelled images and measure the teacher on them
    calibrate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("threshold_momentum", "confidence_decay")
        for name in ("confidence_exponent", "boundary_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name} = {getattr(self, name)} must be 0 or more")
        if self.threshold in ("class_adaptive", "gate") and not self.calibrate:
            raise ValueError(
                f"method.threshold = {self.threshold!r} needs calibration images; set method.calibrate = True"
            )

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Calibration images beside the unlabelled ones."""
        calibration = Stream("calibration", source="calibration", labels=True)
        return (*super().streams, *([calibration] if self.calibrate else []))

    @property
    def rule(self) -> Thresholds:
        """The rule with its settings."""
        return Thresholds(
            rule=self.threshold, fixed=self.confidence_threshold, momentum=self.threshold_momentum
        )

    def init(self, key: Key, setup: Setup) -> tuple[PyTree, PyTree]:
        """Running confidences."""
        return {}, self.rule.init(setup.num_classes)

    def labels(self, networks: Networks, views: Views, noise: PyTree) -> PyTree:
        """Labels of unlabelled images, and the teacher's of calibration images."""
        made = {"unlabelled": super().labels(networks, views, noise)}
        if self.calibrate:
            crop = views.streams["calibration"]
            made["calibration"] = networks.predict(networks.teacher, crop.w)
        return made

    def update(self, state: PyTree, labels: PyTree, views: Views) -> PyTree:
        """Follows the teacher on calibration images, then on unlabelled ones."""
        if self.calibrate:
            crop, made = views.streams["calibration"], labels["calibration"]
            state = self.rule.calibrate(
                state, made.label, made.confidence, ~crop.ignore, crop.label
            )
        own = labels["unlabelled"][0]
        return self.rule.update(state, own.pseudo.label, own.pseudo.confidence, ~own.ignore)

    def targets(
        self, labels: PyTree, views: Views, state: PyTree, progress: Float[Array, ""]
    ) -> Targets:
        """Targets of the labels of unlabelled images."""
        return super().targets(labels["unlabelled"], views, state, progress)

    def thresholds(self, labels: ImageLabels, state: PyTree) -> Float[Array, "b h w"]:
        """The threshold of the class of every pixel."""
        return self.rule.of_classes(state)[labels.pseudo.label]

    def view_targets(self, view: str, labels: ImageLabels, state: PyTree) -> tuple[Target, ...]:
        """The weighted loss, and that of boundaries for images that are not only perturbed in features."""
        label, confidence = labels.pseudo.label, labels.pseudo.confidence
        kept = ~labels.ignore & (confidence >= self.thresholds(labels, state))
        weight = (self.confidence_decay * confidence) ** self.confidence_exponent
        weight = weight * self.rule.weight(state, confidence)
        if self.balance_classes:
            weight = weight * class_weights(label, kept, num_classes=len(state["mean"]))[label]
        targets = [Target(f"loss_{view}", label, losses.ratio(weight * kept, jnp.sum(kept)))]
        if self.boundary_weight and view != "fp":
            edge = kept & boundaries(label)
            targets.append(Target(f"boundary_{view}", label, losses.ratio(edge, jnp.sum(edge))))
        return tuple(targets)

    def factors(self, progress: Float[Array, ""]) -> dict[str, float | Array]:
        """Boundary losses have the factor of their view, times `boundary_weight`."""
        made = super().factors(progress)
        views = self.view_shares.keys() - {"fp"} if self.boundary_weight else ()
        return made | {f"boundary_{v}": self.boundary_weight * made[f"loss_{v}"] for v in views}

    def label_metrics(self, labels: ImageLabels, state: PyTree) -> Metrics:
        """Adds the thresholds, and the teacher's reliability on calibration images."""
        threshold = self.rule.of_classes(state)
        values = {"mean": jnp.mean(threshold), "min": jnp.min(threshold), "max": jnp.max(threshold)}
        made = {f"threshold_{name}": value for name, value in values.items()}
        if self.calibrate:
            measured = self.rule.reliability(state)
            made |= {f"calibration_{name}": value for name, value in measured.items()}
        return super().label_metrics(labels, state) | made
