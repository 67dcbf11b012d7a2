"""The student's forward passes: which images share a pass, and where the perturbation enters.

Enter: trained parameters and normalised views; leave: float logits per view and the running statistics.
Source: METHOD 4.4 and traps 5 and 7.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from semivl_jax.models import segmenter as segmenter_lib
from semivl_jax.train import pseudo
from semivl_jax.train.recipe import Parts
from semivl_jax.train.state import Constants, TrainState, variables
from semivl_jax.types import PyTree, Views

Masks = tuple[Bool[Array, "b 1 1 _"], ...]


@struct.dataclass
class StudentLogits:
    """The student's predictions, float32 b×h×w×n each: labelled, weak, perturbed weak, two strong."""

    x: Float[Array, "b h w n"]
    w: Float[Array, "b h w n"] | None = None
    fp: Float[Array, "b h w n"] | None = None
    s1: Float[Array, "b h w n"] | None = None
    s2: Float[Array, "b h w n"] | None = None


def student_forward(
    parts: Parts,
    constants: Constants,
    state: TrainState,
    trained: PyTree,
    views: Views,
    masks: Masks | None,
) -> tuple[StudentLogits, PyTree]:
    """Predictions of the student for all views, and the running statistics afterwards.

    Without BatchNorm everything is one batch. With it the published order is kept: (x, w) with the
    perturbed w, then (s1, s2), each with its own batch statistics (METHOD trap 7). The perturbed
    prediction of x, which the published code computes and drops, is never made.
    """
    recipe, stats = parts.recipe, state.batch_stats
    run = _Runner(parts, constants, variables(trained, state.frozen, stats))
    if not recipe.semi_supervised:
        (x,), _ = run((views.x,), None)
        return StudentLogits(x=x), run.batch_stats
    s1, s2 = _strong_images(views)
    weak = views.unlabelled.w
    if stats:
        (x, w), fp = run((views.x, weak), masks)
        (s1, s2), _ = run((s1, s2), None)
    else:
        (x, w, s1, s2), fp = run((views.x, weak, s1, s2), masks)
    return StudentLogits(x=x, w=w, fp=fp, s1=s1, s2=s2), run.batch_stats


def _strong_images(views: Views) -> tuple[Array, Array]:
    own, partner = views.unlabelled, views.partner
    s1, s2 = (own.s1[::-1], own.s2[::-1]) if partner is None else (partner.s1, partner.s2)
    return pseudo.mix(views.box1, own.s1, s1), pseudo.mix(views.box2, own.s2, s2)


class _Runner:
    """The student in training mode: encodes and decodes groups of images, updating statistics.

    Images of a group are interleaved (x0, w0, x1, w1, …): a batch that is sharded over devices then
    stays where it is.
    """

    def __init__(self, parts: Parts, constants: Constants, tree: PyTree) -> None:
        self._parts, self._text = parts, constants.text
        self._params, self.batch_stats = tree["params"], tree["batch_stats"]

    def __call__(
        self, images: tuple[Array, ...], masks: Masks | None
    ) -> tuple[tuple[Array, ...], Array | None]:
        """Logits per group of images, and of the second group perturbed where masks are given."""
        count = len(images)
        features = self._apply(_interleave(images), method="encode")
        if masks is not None:
            weak = jax.tree.map(lambda leaf: leaf[1::count], features)
            rate = self._parts.recipe.perturbation_rate
            weak = segmenter_lib.perturb(weak, masks, rate=rate)
            features = jax.tree.map(lambda a, b: _append(a, b, count), features, weak)
            count += 1
        logits = self._apply(features, self._text, method="decode")
        groups = tuple(logits[index::count] for index in range(count))
        return (groups, None) if masks is None else (groups[:-1], groups[-1])

    def _apply(self, *arguments: object, method: str) -> PyTree:
        tree = {"params": self._params, "batch_stats": self.batch_stats}
        output, changed = self._parts.segmenter.apply(
            tree, *arguments, train=True, method=method, mutable=["batch_stats"]
        )
        # Modules without running statistics return an empty collection.
        if changed.get("batch_stats"):
            self.batch_stats = {**self.batch_stats, **changed["batch_stats"]}
        return output


def _interleave(images: tuple[Array, ...]) -> Array:
    stacked = jnp.stack(images, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def _append(groups: Array, extra: Array, count: int) -> Array:
    """Adds one more interleaved group to `count` interleaved ones."""
    grouped = groups.reshape(-1, count, *groups.shape[1:])
    whole = jnp.concatenate([grouped, extra[:, None]], axis=1)
    return whole.reshape(-1, *whole.shape[2:])
