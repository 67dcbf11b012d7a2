"""Co2S: two students, CLIP with texts and DINO with class queries, that teach each other (arXiv 2512.23035).

Each student is UniMatch for itself. On the weak view the less confident one is also drawn to the
probabilities of the other. The model is `models.two_towers.TwoStudents`, whose logits are those of both.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from semivl_jax.models.resize import by_rows
from semivl_jax.models.two_towers import STUDENTS
from semivl_jax.train import losses
from semivl_jax.train.forward import Networks
from semivl_jax.train.methods.base import Criterion, Target, Targets
from semivl_jax.train.methods.consistency import ImageLabels
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.train.pseudo_labels import pseudo_labels
from semivl_jax.types import IGNORE_INDEX, PyTree, Views

Both = dict[str, ImageLabels]
"""Labels of each student."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Co2S(UniMatch):
    """UniMatch for two students, and the distance of their probabilities where one is confident."""

    # published: as released, where the coupling loss has no gradient; intended: as the paper describes it
    coupling: Literal["intended", "published"] = "intended"
    coupling_weight: float = 0.5
    coupling_ramp: float = 0.2  # share of the training in which that weight rises from 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("coupling_ramp")
        if self.coupling_weight < 0:
            raise ValueError(f"method.coupling_weight = {self.coupling_weight} must be 0 or more")

    def labels(self, networks: Networks, views: Views, noise: PyTree) -> list[Both]:
        """Labels of w by each student, and of the partner where it is a crop of its own."""
        crops = (views.streams[key] for key in self.streams[0].keys)
        return [_labels_of_both(networks, crop.w, crop.ignore) for crop in crops]

    def targets(
        self, labels: list[Both], views: Views, state: PyTree, progress: Float[Array, ""]
    ) -> Targets:
        """The targets of both students, each for its half of the logits, and the coupling on w."""
        confidence = {name: labels[0][name].pseudo.confidence for name in STUDENTS}
        views_of: dict[str, tuple[Target, ...]] = {"w": ()}
        factors, metrics = {}, {}
        for i, name in enumerate(STUDENTS):
            made = super().targets([crop[name] for crop in labels], views, state, progress)
            for view, targets in made.views.items():
                own = tuple(_of_student(i, target) for target in targets)
                views_of[view] = (*views_of.get(view, ()), *own)
            peer = confidence[STUDENTS[1 - i]]
            learns = learns_from(confidence[name], peer, threshold=self.confidence_threshold)
            views_of["w"] += (self._coupling_target(i, learns),)
            factors |= {f"{key}_{name}": factor for key, factor in made.factors.items()}
            factors[f"coupling_{name}"] = self.weight_of_coupling(progress)
            metrics |= {f"{key}_{name}": value for key, value in made.metrics.items()}
            metrics[f"learns_{name}"] = jnp.mean(learns, dtype=jnp.float32)
        return Targets(views=views_of, factors=factors, metrics=metrics)

    def weight_of_coupling(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """Rises along a cosine; in the published code the rise ends a step earlier."""
        share = jnp.minimum(progress / self.coupling_ramp, 1.0) if self.coupling_ramp else 1.0
        return self.coupling_weight * 0.5 * (1 - jnp.cos(jnp.pi * share))

    def _coupling_target(self, student: int, learns: Bool[Array, "b h w"]) -> Target:
        """Mean over pixels that learn; the mean over classes is in the criterion. Padding counts."""
        criterion = functools.partial(
            _distance, student=student, attached=self.coupling == "intended"
        )
        weight = losses.ratio(learns, jnp.sum(learns))
        no_label = jnp.full(learns.shape, IGNORE_INDEX, jnp.int32)
        return Target(f"coupling_{STUDENTS[student]}", no_label, weight, criterion)

    def image_labels(
        self, networks: Networks, image: Float[Array, "b h w 3"], state: PyTree
    ) -> dict[str, Array]:
        """Of the student that is more confident."""
        both = _labels_of_both(networks, image, jnp.zeros(image.shape[:3], bool))
        clip, dino = (both[name].pseudo for name in STUDENTS)
        confidence = jnp.maximum(clip.confidence, dino.confidence)
        label = jnp.where(dino.confidence > clip.confidence, dino.label, clip.label)
        sure = confidence >= self.confidence_threshold
        return {"pseudo": jnp.where(sure, label, IGNORE_INDEX), "confidence": confidence}


def learns_from(
    own: Float[Array, "b h w"], peer: Float[Array, "b h w"], *, threshold: float
) -> Bool[Array, "b h w"]:
    """Pixels where a student learns from its peer: that is confident, and at least as confident as itself."""
    return (peer >= threshold) & ((own < threshold) | (peer >= own))


def _labels_of_both(
    networks: Networks, image: Float[Array, "b h w 3"], ignore: Bool[Array, "b h w"]
) -> Both:
    halves = jnp.split(networks.logits(networks.teacher, image), 2, axis=-1)
    return {
        name: ImageLabels(pseudo_labels(half, size=image.shape[1:3]), ignore)
        for name, half in zip(STUDENTS, halves, strict=True)
    }


def _of_student(student: int, target: Target) -> Target:
    """The target for the student's half of the logits."""
    criterion = functools.partial(_of_half, student=student, criterion=target.criterion)
    return target.replace(name=f"{target.name}_{STUDENTS[student]}", criterion=criterion)


def _of_half(
    logits: Array, label: Array, weight: Array, *, student: int, criterion: Criterion | None
) -> Array:
    half = jnp.split(logits, 2, axis=-1)[student]
    if criterion is None:
        return losses.weighted_cross_entropies(half, [label], [weight])[0]
    return criterion(half, label, weight)


def _distance(
    logits: Array, label: Array, weight: Array, *, student: int, attached: bool
) -> Float[Array, ""]:
    """Σ weight · mean over classes of the squared distance to the peer's probabilities."""
    del label

    def of_pixels(logits: Array) -> Array:
        both = [jax.nn.softmax(half, axis=-1) for half in jnp.split(logits, 2, axis=-1)]
        own = both[student] if attached else jax.lax.stop_gradient(both[student])
        return jnp.mean((own - jax.lax.stop_gradient(both[1 - student])) ** 2, axis=-1)

    return jnp.sum(by_rows(of_pixels, logits.astype(jnp.float32), size=weight.shape[1:]) * weight)
