"""Zero-shot labels of the frozen CLIP or SigLIP: for every pixel the class with the most similar text.

In: dense embeddings B×y×x×D of unit length (the tower's last map) and `ClassText`. Out: cosine scores per
class at patch resolution (float32, −1 to 1), or labels at image resolution with the probability of the
chosen class as confidence (of CLIP by softmax, of SigLIP by sigmoid). `Guidance` makes labels from images, in
this way or calibrated.

Sources: MaskCLIP; docs/semivl.md 2, 4.3, 9.8 and 9.10. ExCEL (arXiv 2503.20826).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from semivl_jax.models import label_refinement
from semivl_jax.models.calibrated_clip import Dense, DenseTokens, dense_tokens
from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.resize import bilinear, by_rows
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.types import IGNORE_INDEX, ClassText, PseudoLabels, PyTree

Scores = Literal["cosine", "surgery"]
Refine = Literal["none", "affinity", "par"]


def max_over_concepts(scores: Float[Array, "*b k"], text: ClassText) -> Float[Array, "*b n"]:
    """Scores of text rows -> scores of classes: the best row of each class."""
    if len(text.class_of) == text.num_classes:  # one row each, in whatever order
        return jnp.take(scores, jnp.argsort(text.class_of), axis=-1)
    first = jnp.moveaxis(scores, -1, 0)
    best = jax.ops.segment_max(first, text.class_of, num_segments=text.num_classes)
    return jnp.moveaxis(best, 0, -1)


def rows_in_class_order(text: ClassText) -> Float[Array, "k d"]:
    """The embeddings, sorted by class if there is one per class, so that logits need no sorting."""
    if len(text.class_of) == text.num_classes:
        return text.embeddings[jnp.argsort(text.class_of)]
    return text.embeddings


def classes_in_order(scores: Float[Array, "*b k"], text: ClassText) -> Float[Array, "*b n"]:
    """Scores of `rows_in_class_order` -> scores of classes."""
    return scores if scores.shape[-1] == text.num_classes else max_over_concepts(scores, text)


def class_scores(
    dense: Float[Array, "b y x d"], text: ClassText
) -> Float32[Array, "b y x {text.num_classes}"]:
    """Similarity of every patch with every class."""
    similarity = jnp.einsum(
        "byxd,kd->byxk",
        dense.astype(jnp.float32),
        text.embeddings.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,  # an error of 1e-3 would become one of 10 % below
    )
    return max_over_concepts(similarity, text)


def surgery_scores(
    tokens: Float[Array, "b t d"], text: ClassText
) -> Float32[Array, "b t {text.num_classes}"]:
    """Similarity of every token (class token first) with every class, after CLIP Surgery (arXiv 2304.05653).

    Every channel has unit length over the tokens. Classes that the class token is far from weigh less, and
    what all texts have in common is removed.
    """
    return max_over_concepts(_surgery(tokens, text.embeddings), text)


def _surgery(tokens: Array, rows: Array) -> Float32[Array, "b t k"]:
    tokens, rows = tokens.astype(jnp.float32), rows.astype(jnp.float32)
    length = jnp.linalg.norm(tokens, axis=1, keepdims=True)
    similarity = jnp.einsum(
        "btd,kd->btk",
        tokens / jnp.maximum(length, 1e-12),
        rows,
        precision=jax.lax.Precision.HIGHEST,
    )
    weight = jax.nn.softmax(2 * similarity[:, :1], axis=-1)
    weighted = similarity * weight / weight.mean(axis=-1, keepdims=True)
    return weighted - weighted.mean(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the frozen CLIP labels images (`config.guidance`).

    tower    its image tower, which returns the dense embedding
    dense    "value": the value path (MaskCLIP), or "svc": calibrated by correlations (`calibrated_clip`)
    scores   "cosine" of patches and texts, or "surgery"
    refine   "none", "affinity": along CLIP's attention, or "par": along the colours (`label_refinement`)

    Published are "value" and "cosine" (SemiVL), and "svc" and "surgery" (ExCEL). There every class that an
    image is known to have reaches the score 1 somewhere. Images here have no such tags, so scores go through
    the same softmax as cosines, in units of cosines: as if tokens had unit length on average.
    """

    tower: VisionTransformer
    dense: Dense = "value"
    scores: Scores = "cosine"
    refine: Refine = "none"

    def labels(
        self,
        params: PyTree,
        text: ClassText,
        image: Float[Array, "b h w 3"],
        *,
        threshold: float,
        ignore: Bool[Array, "b h w"] | None = None,
    ) -> PseudoLabels:
        """Labels of images as the tower sees them; see `guidance_labels`."""
        size = image.shape[1:3]
        if (self.dense, self.scores, self.refine) == ("value", "cosine", "none"):
            dense = self.tower.apply({"params": params}, image).maps[-1]
            return guidance_labels(dense, text, size=size, threshold=threshold, ignore=ignore)
        found = dense_tokens(self.tower, params, image, self.dense)
        scores = self._scores(found, text)
        if self.refine == "affinity":
            moved = label_refinement.along_attention(scores, found.attention[:, 1:, 1:])
            scores = label_refinement.with_range_of(moved, scores)
        if self.refine != "par":
            return _labels(_best_of(text), scores, size, threshold, ignore)
        logits = text.logit_scale * bilinear(scores, size, align_corners=False)
        refined = label_refinement.along_colours(jax.nn.softmax(logits, axis=-1), image)
        return _labels(_highest, refined, size, threshold, ignore)

    def _scores(self, found: DenseTokens, text: ClassText) -> Float32[Array, "b y x n"]:
        batch, count, width = found.tokens.shape
        if self.scores == "surgery":
            scores = surgery_scores(found.tokens, text)[:, 1:] * (count / width) ** 0.5
            return scores.reshape(batch, *found.grid, -1)
        return class_scores(
            l2_normalize(found.tokens[:, 1:]).reshape(batch, *found.grid, width), text
        )


def guidance_labels(
    dense: Float[Array, "b y x d"],
    text: ClassText,
    *,
    size: tuple[int, int],
    threshold: float,
    ignore: Bool[Array, "b {size[0]} {size[1]}"] | None = None,
) -> PseudoLabels:
    """Labels for images of `size` = (rows, columns).

    255 where the probability of the best class is below `threshold`, and wherever `ignore` is true.
    """
    return _labels(_best_of(text), class_scores(dense, text), size, threshold, ignore)


def _labels(
    best_of: Callable[[Array], tuple[Array, Array]],
    scores: Array,
    size: tuple[int, int],
    threshold: float,
    ignore: Array | None,
) -> PseudoLabels:
    best, confidence = by_rows(best_of, scores, size=size)
    label = jnp.where(confidence >= threshold, best, IGNORE_INDEX)
    if ignore is not None:
        label = jnp.where(ignore, IGNORE_INDEX, label)
    return PseudoLabels(label=label, confidence=confidence)


def _best_of(text: ClassText) -> Callable[[Array], tuple[Array, Array]]:
    return functools.partial(_most_probable, scale=text.logit_scale, bias=text.logit_bias)


def _most_probable(scores: Array, *, scale: float, bias: float | None) -> tuple[Array, Array]:
    logits = scale * scores
    best, highest = jnp.argmax(logits, axis=-1).astype(jnp.int32), logits.max(axis=-1)
    if bias is not None:
        return best, jax.nn.sigmoid(highest + bias)
    return best, jnp.exp(highest - jax.nn.logsumexp(logits, axis=-1))


def _highest(probabilities: Array) -> tuple[Array, Array]:
    best = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
    return best, probabilities.max(axis=-1) / probabilities.sum(axis=-1)
