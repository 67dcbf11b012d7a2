"""Zero-shot labels of the frozen CLIP or SigLIP: for every pixel the class with the most similar text.

In: dense embeddings B×y×x×D of unit length (the tower's last map) and `ClassText`. Out: cosine scores per
class at patch resolution (float32, −1 to 1), or labels at image resolution with the probability of the
chosen class as confidence (of CLIP by softmax, of SigLIP by sigmoid).

Source: MaskCLIP; METHOD 2 and 4.3, traps 8 and 10 of section 9.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from semivl_jax.models.resize import by_rows
from semivl_jax.types import IGNORE_INDEX, ClassText, PseudoLabels


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
    most_probable = functools.partial(_most_probable, scale=text.logit_scale, bias=text.logit_bias)
    best, confidence = by_rows(most_probable, class_scores(dense, text), size=size)
    label = jnp.where(confidence >= threshold, best, IGNORE_INDEX)
    if ignore is not None:
        label = jnp.where(ignore, IGNORE_INDEX, label)
    return PseudoLabels(label=label, confidence=confidence)


def _most_probable(scores: Array, *, scale: float, bias: float | None) -> tuple[Array, Array]:
    logits = scale * scores
    best, highest = jnp.argmax(logits, axis=-1).astype(jnp.int32), logits.max(axis=-1)
    if bias is not None:
        return best, jax.nn.sigmoid(highest + bias)
    return best, jnp.exp(highest - jax.nn.logsumexp(logits, axis=-1))
