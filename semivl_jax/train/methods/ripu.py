"""RIPU's losses for masks that label only regions: local consistency, negative learning (arXiv 2111.12940).

`python -m semivl_jax.select --unit=region` chooses such regions. `ripu` trains on labelled images with these
losses, `ripu_semivl` adds them to SemiVL. Where the published code divides by 0 a loss here is 0.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from semivl_jax.models.resize import bilinear
from semivl_jax.train import losses
from semivl_jax.train.methods.base import Method, Target, Targets
from semivl_jax.train.methods.semivl import SemiVL
from semivl_jax.types import IGNORE_INDEX, PyTree, Stream, Views

Distance = Literal["l1", "kl"]

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionLosses(Method):
    """Adds the losses to a method; its weak view of unlabelled images, if it has one, learns negatively."""

    consistency_distance: Distance = "l1"  # of a pixel's probabilities to the mean around it
    consistency_weight: float = 0.1  # of that distance at class boundaries of labelled images
    negative_weight: float = 1.0  # of the loss that lowers what is improbable anyway, on all images
    negative_threshold: float = 0.05  # probability below which a class is improbable

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("negative_threshold")
        for name in ("consistency_weight", "negative_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name} = {getattr(self, name)} must be 0 or more")

    def check_accumulation(self, parts: int) -> None:
        """The divisor of negative learning is the count of improbable classes in the whole batch."""
        super().check_accumulation(parts)
        if self.negative_weight:
            raise ValueError(
                f"accumulation = {parts} does not go with method.negative_weight = {self.negative_weight}, "
                "whose loss divides by a count of the whole batch; set accumulation = 1 or "
                "method.negative_weight = 0"
            )

    def labelled_target(self, views: Views) -> Target:
        """Cross entropy as a mean over images of their means, so that few labelled pixels count as many."""
        if self.criterion != "cross_entropy":
            return super().labelled_target(views)
        labelled = views.y != IGNORE_INDEX
        count = labelled.sum((1, 2), keepdims=True)
        weight = losses.ratio(losses.ratio(labelled, count), jnp.sum(count > 0))
        return Target("loss_x", views.y, weight)

    def targets(
        self, labels: PyTree, views: Views, state: PyTree, progress: Float[Array, ""]
    ) -> Targets:
        """Adds both losses to the labelled images, and negative learning to the weak view."""
        made = super().targets(labels, views, state, progress)
        edge = boundaries(views.y)
        consistency = functools.partial(local_consistency, distance=self.consistency_distance)
        negative = functools.partial(negative_learning, threshold=self.negative_threshold)
        weak = views.streams["unlabelled"].ignore
        nothing = jnp.full(weak.shape, IGNORE_INDEX, jnp.int32)
        rim = Target("consistency_x", views.y, losses.ratio(edge, jnp.sum(edge)), consistency)
        further = {
            "x": (rim, Target("negative_x", views.y, jnp.ones(edge.shape), negative)),
            "w": (Target("negative_w", nothing, jnp.float32(~weak), negative),),
        }
        by_view = {view: made.views.get(view, ()) + extra for view, extra in further.items()}
        factors = {"consistency_x": self.consistency_weight}
        factors |= {f"negative_{view}": self.negative_weight / 2 for view in further}
        return made.replace(views=made.views | by_view, factors=made.factors | factors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ripu(RegionLosses):
    """Labelled images; unlabelled ones learn negatively only."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Unlabelled images."""
        return (Stream("unlabelled"),)

    def passes(self, views: Views) -> list[dict[str, Float[Array, "b h w 3"]]]:
        """x and w."""
        return [{"x": views.x, "w": views.streams["unlabelled"].w}]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RipuSemiVL(RegionLosses, SemiVL):
    """SemiVL with these losses."""


def boundaries(label: Int[Array, "b h w"]) -> Bool[Array, "b h w"]:
    """Labelled pixels where the Laplacian of the label numbers over 3×3 pixels is not 0.

    As published: outside the image the label is 0, and neighbours of pixels without a label count.
    """
    label = label.astype(jnp.int32)
    around = jax.lax.reduce_window(label, 0, jax.lax.add, (1, 3, 3), (1, 1, 1), "SAME")
    return (9 * label != around) & (label != IGNORE_INDEX)


def local_consistency(
    logits: Float[Array, "b y x n"],
    label: Int[Array, "b h w"],
    weight: Float[Array, "b h w"],
    *,
    distance: Distance,
) -> Float32[Array, ""]:
    """Σ weight · distance of a pixel's probabilities to their mean over 3×3 pixels (borders replicated)."""
    return jnp.sum(weight * consistency_map(_probabilities(logits, label.shape[1:]), distance))


def consistency_map(
    probabilities: Float[Array, "b h w n"], distance: Distance
) -> Float32[Array, "b h w"]:
    """That distance for every pixel: the sum of absolute differences, or the Kullback-Leibler divergence."""
    padded = jnp.pad(probabilities, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    window = (1, 3, 3, 1)
    mean = jax.lax.reduce_window(padded, 0.0, jax.lax.add, window, (1, 1, 1, 1), "VALID") / 9
    if distance == "l1":
        return jnp.abs(probabilities - mean).sum(-1)
    return (probabilities * jnp.log(probabilities / (mean + EPSILON) + EPSILON)).sum(-1)


def negative_learning(
    logits: Float[Array, "b y x n"],
    label: Int[Array, "b h w"],
    weight: Float[Array, "b h w"],
    *,
    threshold: float,
) -> Float32[Array, ""]:
    """Mean of −log(1 − p) over the probabilities p below `threshold`, where `weight` is 1."""
    probabilities = _probabilities(logits, label.shape[1:])
    low = weight[..., None] * (probabilities < threshold)
    return losses.ratio(-jnp.sum(low * jnp.log(1 - probabilities + EPSILON)), jnp.sum(low))


def _probabilities(logits: Array, size: tuple[int, ...]) -> Float32[Array, "b h w n"]:
    return jax.nn.softmax(bilinear(logits.astype(jnp.float32), size, align_corners=False), axis=-1)
