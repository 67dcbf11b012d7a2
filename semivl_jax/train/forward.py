"""The student's forward passes: which images share a pass, and where the perturbation enters.

Enter: trained parameters and normalised views; leave: float logits per view and the running statistics.
Source: METHOD 4.4 and traps 5, 6 and 7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from semivl_jax.models import segmenter as segmenter_lib
from semivl_jax.models.resize import bilinear
from semivl_jax.train import noise as noise_lib
from semivl_jax.train import pseudo
from semivl_jax.train.noise import Noise
from semivl_jax.train.recipe import Parts
from semivl_jax.train.state import Constants, TrainState, variables
from semivl_jax.types import Features, Key, PyTree, Views

_PERTURBED = {"x": "x_fp", "w": "fp"}


@struct.dataclass
class StudentLogits:
    """The student's predictions, float32 b×y×z×n each: labelled, weak, perturbed weak, strong.

    Of the images' size, or of a grid that is resized to it bilinearly. None where the recipe has no such
    view.
    """

    x: Float[Array, "b y z n"]
    w: Float[Array, "b y z n"] | None = None
    fp: Float[Array, "b y z n"] | None = None
    s1: Float[Array, "b y z n"] | None = None
    s2: Float[Array, "b y z n"] | None = None

    def resized(self, size: tuple[int, int]) -> StudentLogits:
        """All of them at `size` = (rows, columns)."""
        return jax.tree.map(lambda leaf: bilinear(leaf, size, align_corners=False), self)


def student_forward(
    parts: Parts,
    constants: Constants,
    state: TrainState,
    trained: PyTree,
    views: Views,
    noise: Noise,
) -> tuple[StudentLogits, PyTree]:
    """Predictions of the student for all views, and the running statistics afterwards.

    The published order is x and w (with what is perturbed of them), then s1 and s2, each with its own
    batch statistics and dropout (METHOD traps 6 and 7). Where neither tells the two passes apart,
    everything is one batch; a decoder without either takes both passes of its encoder at once.
    """
    recipe, stats = parts.recipe, state.batch_stats
    run = _Runner(parts, constants, variables(trained, state.frozen, stats), noise)
    passes = [{"x": views.x}]
    if recipe.semi_supervised:
        if recipe.student_sees_weak:
            passes[0]["w"] = views.unlabelled.w
        strong = _strong_images(views, count=recipe.strong_views)
        if stats or recipe.dropout_passes == "first":
            passes.append(strong)
        else:
            passes[0] |= strong
    if recipe.dropout_passes == "none" and not stats.get("decoder"):
        logits = run.decode(_joined([run.encode(images) for images in passes]))
    else:
        logits = {}
        for images in passes:
            logits |= run.decode(run.encode(images))
    logits.pop("x_fp", None)
    return StudentLogits(**logits), run.batch_stats


def _strong_images(views: Views, *, count: int) -> dict[str, Array]:
    own, partner, boxes = views.unlabelled, views.partner, (views.box1, views.box2)
    mixed = {}
    for name, box in zip(("s1", "s2")[:count], boxes, strict=False):
        here = getattr(own, name)
        there = here[::-1] if partner is None else getattr(partner, name)
        mixed[name] = pseudo.mix(box, here, there)
    return mixed


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Features of some views, interleaved (x0, w0, x1, w1, …): a batch that is sharded over devices then
    stays where it is. `dropout` is the key of the pass.
    """

    views: list[str]
    features: Features
    dropout: Key | None


class _Runner:
    """The student in training mode: encodes and decodes groups of images, updating statistics."""

    def __init__(self, parts: Parts, constants: Constants, tree: PyTree, noise: Noise) -> None:
        self._parts, self._text, self._noise = parts, constants.text, noise
        self._params, self.batch_stats = tree["params"], tree["batch_stats"]
        self._dropout = noise.dropout

    def encode(self, images: dict[str, Array]) -> _Encoded:
        """One pass over the images, with its own dropout, and the perturbed copies of its features."""
        names, dropout = list(images), self._next_dropout()
        features = self._apply(_interleave(list(images.values())), method="encode", dropout=dropout)
        if self._noise.factors is not None and "s1" in names:
            features = self._scaled(features, names)
        if self._noise.masks is not None and "w" in names:
            features, names = self._with_perturbed(features, names)
        return _Encoded(names, features, dropout)

    def decode(self, encoded: _Encoded) -> dict[str, Array]:
        """Logits by name of the view."""
        logits = self._apply(
            encoded.features, self._text, method="decode_grid", dropout=encoded.dropout
        )
        count = len(encoded.views)
        return {name: logits[index::count] for index, name in enumerate(encoded.views)}

    def _scaled(self, features: Features, names: list[str]) -> Features:
        """Complementary channel dropout of the strong views."""
        given = dict(zip(("s1", "s2"), self._noise.factors, strict=True))
        ones = jax.tree.map(jnp.ones_like, given["s1"])
        by_view = [given.get(name, ones) for name in names]
        factors = jax.tree.map(lambda *leaves: _interleave(leaves), *by_view)
        return noise_lib.scale(features, factors)

    def _with_perturbed(self, features: Features, names: list[str]) -> tuple[Features, list[str]]:
        """Adds the perturbed features of w, and of x where the decoder has batch statistics.

        The prediction from the latter is not used, but takes part in the statistics (METHOD trap 7).
        """
        rate, count = self._parts.recipe.perturbation_rate, len(names)
        batch = features.maps[0].shape[0] // count
        halves = {"x": slice(None, batch), "w": slice(batch, None)}
        if not self.batch_stats.get("decoder"):
            del halves["x"]
        added = []
        for name, half in halves.items():
            first = names.index(name)
            clean = jax.tree.map(lambda leaf, first=first: leaf[first::count], features)
            masks = tuple(mask[half] for mask in self._noise.masks)
            added.append(segmenter_lib.perturb(clean, masks, rate=rate))
        counts = [count, *(1 for _ in added)]
        features = jax.tree.map(lambda *leaves: _interleave(leaves, counts), features, *added)
        return features, [*names, *(_PERTURBED[name] for name in halves)]

    def _next_dropout(self) -> Key | None:
        """What the next pass drops with: nothing after the first one, where the recipe says so."""
        if self._dropout is None:
            return None
        now, later = jax.random.split(self._dropout)
        self._dropout = later if self._parts.recipe.dropout_passes == "all" else None
        return now

    def _apply(self, *arguments: object, method: str, dropout: Key | None) -> PyTree:
        tree = {"params": self._params, "batch_stats": self.batch_stats}
        output, changed = segmenter_lib.applied_in_training(
            self._parts.segmenter, tree, *arguments, method=method, dropout=dropout
        )
        self.batch_stats = {**self.batch_stats, **changed}
        return output


def _joined(passes: list[_Encoded]) -> _Encoded:
    """All passes as one; for decoders that drop nothing and treat every image by itself."""
    counts = [len(encoded.views) for encoded in passes]
    features = jax.tree.map(
        lambda *leaves: _interleave(leaves, counts), *(encoded.features for encoded in passes)
    )
    return _Encoded([view for encoded in passes for view in encoded.views], features, None)


def _interleave(groups: Sequence[Array], counts: Sequence[int] | None = None) -> Array:
    """All views of an image next to each other; groups hold `counts` views of each, by default one."""
    counts = counts or [1] * len(groups)
    by_image = [
        group.reshape(-1, count, *group.shape[1:])
        for group, count in zip(groups, counts, strict=True)
    ]
    whole = jnp.concatenate(by_image, axis=1)
    return whole.reshape(-1, *whole.shape[2:])
