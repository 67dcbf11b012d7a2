"""UniMatch with a threshold per class, so that rare and thin classes get pseudo-labels too.

With one threshold of 0.95 such classes have almost no pseudo-labels, while the pixels that are wrongly taken
for a frequent class have many: unlabelled images then teach the model to forget them. Here a pseudo-label
counts from the mean confidence of its class on, or from `confidence_threshold` where that is lower. As in
class-balanced self-training (CBST, Zou et al., ECCV 2018, arXiv 1810.07911), about the same share of every
class is kept; a running mean takes the place of its sorting over the whole data set.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from semivl_jax.train.methods.base import Metrics, Setup
from semivl_jax.train.methods.consistency import ImageLabels
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.types import Key, PyTree, Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniMatchBalanced(UniMatch):
    """UniMatch; the state is the running mean confidence of every class, float32 [n]."""

    threshold_momentum: float = 0.99  # of the running mean; the share that a step keeps

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("threshold_momentum")

    def init(self, key: Key, setup: Setup) -> tuple[PyTree, PyTree]:
        """Every class starts at the common threshold."""
        return {}, jnp.full(setup.num_classes, self.confidence_threshold, jnp.float32)

    def update(self, state: PyTree, labels: list[ImageLabels], views: Views) -> PyTree:
        """Follows the confidences of the classes that the teacher predicts in this batch."""
        own = labels[0]
        hit = (own.pseudo.label[..., None] == jnp.arange(len(state))) & ~own.ignore[..., None]
        count = jnp.sum(hit, axis=(0, 1, 2))
        total = jnp.sum(jnp.where(hit, own.pseudo.confidence[..., None], 0.0), axis=(0, 1, 2))
        mean = total / jnp.maximum(count, 1)
        average = self.threshold_momentum * state + (1 - self.threshold_momentum) * mean
        return jnp.where(count > 0, average, state)

    def thresholds(self, labels: ImageLabels, state: PyTree) -> Float[Array, "b h w"]:
        """The threshold of the class of every pixel."""
        return self._of_classes(state)[labels.pseudo.label]

    def _of_classes(self, state: PyTree) -> Float[Array, " n"]:
        return jnp.minimum(state, self.confidence_threshold)

    def label_metrics(self, labels: ImageLabels, state: PyTree) -> Metrics:
        """Adds the lowest and the mean threshold of a class."""
        threshold = self._of_classes(state)
        values = {"threshold_min": jnp.min(threshold), "threshold_mean": jnp.mean(threshold)}
        return super().label_metrics(labels, state) | values
