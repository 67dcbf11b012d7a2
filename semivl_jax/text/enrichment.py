"""Text embeddings of classes, enriched with sentences about them.

In: `ClassText` and sentences by class. Out: `ClassText` of the same shape. The sentences of all classes are
clustered, and every text takes a share of the clusters that it is close to.

Source: ExCEL (arXiv 2503.20826), text semantic enrichment.
"""

from __future__ import annotations

import json
import warnings

import jax
import numpy as np
from jaxtyping import Float, Float32
from scipy.cluster.vq import kmeans2

from semivl_jax import utils
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text.class_text import PROMPT, Embed
from semivl_jax.types import ClassText

DEFINITIONS = "definitions"
KEPT = 0.9
"""Share of the clusters that a text takes from; the others are the least similar ones."""

Sentences = tuple[tuple[str, ...], ...]


def read_sentences(source: str, info: DatasetInfo) -> Sentences:
    """Sentences of every class: "definitions" of the data set, or of a JSON file {"class": ["sentence", …]}.

    Classes that the file lacks have none.

    Raises:
      ValueError: no such file, another content, or a class that the data set does not have.
    """
    if source == DEFINITIONS:
        return info.definitions
    where = f"guidance.sentences = {source!r}"
    form = 'write {"class": ["sentence", "sentence"]}'
    try:
        found = json.loads(utils.user_path(source).read_text(encoding="utf8"))
    except OSError as error:
        raise ValueError(
            f"{where} cannot be read ({error.strerror}); name a JSON file, or {DEFINITIONS!r}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where} is no JSON in UTF-8 ({error}); {form}") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{where} holds no sentences by class; {form}")
    for name, sentences in found.items():
        if name not in info.classes:
            raise ValueError(
                f"{where} has sentences for {name!r}, which is no class; the classes are "
                f"{', '.join(info.classes[:20])}"
            )
        of_text = isinstance(sentences, list) and all(isinstance(s, str) for s in sentences)
        if not of_text or not sentences or not all(s.strip() for s in sentences):
            raise ValueError(f"{where}: class {name!r} has no list of sentences; {form}")
    return tuple(tuple(found.get(name, ())) for name in info.classes)


def enrich(text: ClassText, sentences: Sentences, *, clusters: int, embed: Embed) -> ClassText:
    """Texts of the classes that have sentences, enriched; the others stay as they are."""
    every = list(dict.fromkeys(s.strip().lower() for of_class in sentences for s in of_class))
    centres = bank(np.asarray(embed([PROMPT.format(s) for s in every])), clusters)
    rows = np.asarray(text.embeddings)
    chosen = np.asarray([bool(of_class) for of_class in sentences])[np.asarray(text.class_of)]
    rows = np.where(chosen[:, None], enriched(rows, centres), rows)
    return text.replace(embeddings=jax.device_put(rows.astype(np.float32)))


def bank(embeddings: Float[np.ndarray, "s d"], clusters: int) -> Float[np.ndarray, "d k"]:
    """Centres of at most so many clusters of the normalised sentences, one a column; not normalised."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    if clusters >= len(unit):
        return unit.T
    random = np.random.default_rng(0)
    with warnings.catch_warnings(action="ignore"):  # of empty clusters
        centres, cluster_of = kmeans2(
            unit.astype(np.float64), clusters, iter=50, minit="++", rng=random
        )
    return centres[np.unique(cluster_of)].T


def enriched(
    rows: Float[np.ndarray, "k d"], centres: Float[np.ndarray, "d c"], *, kept: float = KEPT
) -> Float32[np.ndarray, "k d"]:
    """Unit rows plus the mean of the centres, weighted by the softmax of their similarity; unit length.

    Only the share `kept` of the centres, the most similar ones, counts. What is left out is rounded as
    published: one less than a tenth for multiples of ten.
    """
    similarity = rows @ centres
    count = int((1 - kept) * centres.shape[1])
    least = np.argsort(similarity, axis=1)[:, :count]
    np.put_along_axis(similarity, least, -np.inf, axis=1)
    weight = np.exp(similarity - similarity.max(axis=1, keepdims=True))
    made = rows + weight / weight.sum(axis=1, keepdims=True) @ centres.T
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
