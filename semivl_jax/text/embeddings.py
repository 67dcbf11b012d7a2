"""From class names to the text embeddings that guidance and decoder compare pixels with.

In: a data set's class names and definitions, and a function that runs a text tower. Out: `ClassText`, float32
rows of unit length with the class that each describes. The tower itself is passed in, so that this
module needs no model and no weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text.prompts import prompts
from semivl_jax.types import ClassText

MODES = ("name", "concept", "concept_average")
Embed = Callable[[list[str]], np.ndarray]
"""Sentences -> float[k,d], not normalised."""


def class_text(info: DatasetInfo, *, mode: str, embed: Embed) -> ClassText:
    """Embed the classes of a data set (METHOD section 2).

    name             one row per class: its plain name
    concept          one row per concept of its definition; scores are maxed over the rows of a class
    concept_average  one row per class: the mean of its concepts' rows before they are normalised

    ValueError for another mode, or where `embed` returns zero, non-finite or misshapen rows.
    """
    if mode not in MODES:
        raise ValueError(f"text mode is {mode!r}; use one of {', '.join(MODES)}")
    classes = info.classes
    groups = [[name] for name in classes] if mode == "name" else [list(d) for d in info.definitions]
    class_of = np.repeat(np.arange(len(groups), dtype=np.int32), [len(g) for g in groups])
    rows = _embedded(prompts([concept for group in groups for concept in group]), embed)
    if mode == "concept_average":
        rows = np.stack([rows[class_of == i].mean(axis=0) for i in range(len(groups))])
        class_of = np.arange(len(groups), dtype=np.int32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(length > 0):
        worst = classes[int(class_of[int(np.argmin(length))])]
        raise ValueError(
            f"the text embedding of class {worst!r} has length 0; check the text tower"
        )
    unit = (rows / length).astype(np.float32)
    return ClassText(jax.device_put(unit), jax.device_put(class_of), num_classes=len(groups))


def _embedded(sentences: list[str], embed: Embed) -> np.ndarray:
    """Rows float64[k,d] of the sentences; the same sentence is embedded once."""
    once = list(dict.fromkeys(sentences))
    rows = np.asarray(embed(once), np.float64)
    if rows.ndim != 2 or len(rows) != len(once):
        raise ValueError(f"the text tower gave shape {rows.shape} for {len(once)} sentences")
    if not np.all(np.isfinite(rows)):
        bad = once[int(np.argmin(np.isfinite(rows).all(axis=1)))]
        raise ValueError(f"the text tower gave a non-finite embedding for {bad!r}")
    return rows[[once.index(sentence) for sentence in sentences]]
