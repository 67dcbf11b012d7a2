"""Common part of FixMatch, UniMatch and SemiVL: pseudo-labels of a weak view train perturbed views.

The teacher labels the weak view w of unlabelled images. The student must agree on strong views s1, s2, into
which CutMix pastes a box of a partner image, with the partner's label. Labels of low confidence do not count.
Source: FixMatch (arXiv 2001.07685), UniMatch (arXiv 2208.09910); docs/semivl.md 4.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int32

from semivl_jax.train import losses
from semivl_jax.train.augment import cutmix
from semivl_jax.train.forward import Networks
from semivl_jax.train.methods.base import Method, Metrics, Target, Targets, mask_target
from semivl_jax.train.pseudo_labels import ConfidenceMode, consistency_weights
from semivl_jax.types import IGNORE_INDEX, PseudoLabels, PyTree, Stream, StreamViews, Views


@struct.dataclass
class ImageLabels:
    """Labels of unlabelled images, their padding, and the guidance labels of a guided method."""

    pseudo: PseudoLabels
    ignore: Bool[Array, "b h w"]
    guidance: Int32[Array, "b h w"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Method):
    """Pseudo-labels of a teacher; subclasses choose the views and the perturbation of features."""

    teacher: Literal["ema", "student"] = "ema"  # student: the published choice, without an EMA
    ema_decay: float = 0.996
    # CutMix partner: batch (the reversed batch), or same_image (a second crop of the photo, as published)
    cutmix_partner: Literal["batch", "same_image"] = "batch"
    confidence_mode: ConfidenceMode = "pixelwise"
    confidence_threshold: float = 0.95

    view_shares: ClassVar[dict[str, float]] = {}
    """Share of every view in the consistency loss, 1 together (docs/semivl.md 4.7)."""
    weak_pass: ClassVar[bool] = False
    """Whether the first pass of the student includes the weak view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("ema_decay", "confidence_threshold")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Unlabelled images, twice where the partner is another crop of the same photo."""
        return (Stream("unlabelled", crops=2 if self.cutmix_partner == "same_image" else 1),)

    @property
    def decay(self) -> float | None:
        """None where the teacher is the student."""
        return self.ema_decay if self.teacher == "ema" else None

    def labels(self, networks: Networks, views: Views, noise: PyTree) -> PyTree:
        """Labels of w, and of the partner where it is a crop of its own (docs/semivl.md 4.2)."""
        own, *partner = (views.streams[key] for key in self.streams[0].keys)
        if self.teacher == "ema":
            pseudo = networks.predict(networks.teacher, own.w)
        else:
            pseudo = networks.predict_in_training(
                {"x": views.x, "w": own.w}, name="w", **self.forward_options(noise)
            )
        labels = [self.image_targets(networks, own, pseudo)]
        for crop in partner:
            pseudo = networks.predict(networks.teacher, crop.w)
            labels.append(self.image_targets(networks, crop, pseudo))
        return labels

    def image_targets(
        self, networks: Networks, crop: StreamViews, pseudo: PseudoLabels
    ) -> ImageLabels:
        """All labels of a crop, given its pseudo-label."""
        return ImageLabels(pseudo, crop.ignore)

    def targets(
        self,
        labels: list[ImageLabels],
        views: Views,
        state: PyTree,
        progress: Float[Array, ""],
    ) -> Targets:
        """Targets of labelled images and of every view; labels of strong views are mixed by CutMix."""
        own = labels[0]
        partner = labels[1] if len(labels) > 1 else jax.tree.map(_reversed, own)
        by_view = {"x": (self.labelled_target(views),)}
        for view in self.view_shares:
            mixed = own
            if view in views.boxes:
                mixed = jax.tree.map(functools.partial(cutmix.mix, views.boxes[view]), own, partner)
            by_view[view] = self.view_targets(view, mixed, state)
        return Targets(
            views=by_view, factors=self.factors(progress), metrics=self.label_metrics(own, state)
        )

    def thresholds(self, labels: ImageLabels, state: PyTree) -> float | Float[Array, "b h w"]:
        """The confidence from which a pseudo-label counts: one for all pixels, or one for each."""
        return self.confidence_threshold

    def view_targets(self, view: str, labels: ImageLabels, state: PyTree) -> tuple[Target, ...]:
        """The targets of one view, named `loss_<view>` and so on."""
        pseudo = labels.pseudo
        if self.criterion == "focal_dice":  # cannot weight single pixels
            scale = self.confident_share(labels, state)
            return (mask_target(f"loss_{view}", pseudo.label, scale),)
        weight = consistency_weights(
            pseudo.confidence,
            labels.ignore,
            mode=self.confidence_mode,
            threshold=self.thresholds(labels, state),
        )
        return (Target(f"loss_{view}", pseudo.label, weight),)

    def factors(self, progress: Float[Array, ""]) -> dict[str, float | Array]:
        """Factor of every loss in the total, by name."""
        shares = {f"loss_{view}": 0.5 * share for view, share in self.view_shares.items()}
        return {"loss_x": 0.5, **shares}

    def label_metrics(self, labels: ImageLabels, state: PyTree) -> Metrics:
        """Metrics of the labels of w."""
        return {"confident": self.confident_share(labels, state)}

    def confident_share(self, labels: ImageLabels, state: PyTree) -> Float[Array, ""]:
        """Share of the pixels whose confidence reaches the threshold."""
        sure = labels.pseudo.confidence >= self.thresholds(labels, state)
        return losses.share_of_valid(sure, labels.ignore)

    def passes(self, views: Views) -> list[dict[str, Float[Array, "b h w 3"]]]:
        """x and w, then the strong views (docs/semivl.md 4.4, 9.6 and 9.7)."""
        own, *partner = (views.streams[key] for key in self.streams[0].keys)
        first = {"x": views.x}
        if self.weak_pass or self.teacher == "student":
            first["w"] = own.w
        strong = {}
        for view in self.view_shares:
            if view in views.boxes:
                here = getattr(own, view)
                there = getattr(partner[0], view) if partner else _reversed(here)
                strong[view] = cutmix.mix(views.boxes[view], here, there)
        return [first, strong]

    def image_labels(
        self, networks: Networks, image: Float[Array, "b h w 3"], state: PyTree
    ) -> dict[str, Array]:
        """The teacher's label where it is confident, and its confidence."""
        pseudo = networks.predict(networks.teacher, image)
        no_padding = jnp.zeros(pseudo.label.shape, bool)
        sure = pseudo.confidence >= self.thresholds(ImageLabels(pseudo, no_padding), state)
        label = jnp.where(sure, pseudo.label, IGNORE_INDEX)
        return {"pseudo": label, "confidence": pseudo.confidence}


def _reversed(leaf: Array) -> Array:
    return leaf[::-1]
