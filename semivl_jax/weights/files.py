"""The project's own weight files: what they hold, how large it is, the parameters.

In and out: safetensors files whose metadata say

    format   what the tree is: CLIP, SIGLIP, BACKBONE or SEGMENTER below
    kind     which model it is: where the weights come from, or the module that they belong to
    sizes    JSON: constructor arguments of the module or modules, so that a file describes itself
    (more)   texts for people: source, notes

The trees: CLIP {"image", "text", "logit_scale"}; the others {"params", "batch_stats"}, for SIGLIP with
"img", "txt", "t" and "b" in "params". Arrays may be float16; `load` gives float32.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights import store

CLIP = "semivl_jax clip 2"
"""Image and text tower that share an embedding space."""
SIGLIP = "semivl_jax siglip 1"
"""SigLIP's image and text tower, temperature and bias."""
BACKBONE = "semivl_jax backbone 1"
"""An image encoder alone."""
SEGMENTER = "semivl_jax segmenter"
"""Encoder and decoder: a whole model."""

_PARTS = {
    CLIP: ("image", "text", "logit_scale"),
    SIGLIP: ("params",),
    BACKBONE: ("params",),
    SEGMENTER: ("params",),
}
USES = {
    CLIP: "model.weights",
    SIGLIP: "model.backbone_weights",
    BACKBONE: "model.backbone_weights",
    SEGMENTER: "model.checkpoint",
}
"""The configuration key that takes a file of the format."""

_FIELDS = ("format", "kind", "sizes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Contents of a file; `tree` holds NumPy arrays."""

    format: str
    kind: str
    sizes: dict[str, Any]
    tree: PyTree
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


def save(path: str | os.PathLike[str], weights: Weights) -> None:
    """Write the file; it appears complete or not at all. Arrays keep their dtype."""
    metadata = {
        "format": weights.format,
        "kind": weights.kind,
        "sizes": json.dumps(weights.sizes),
    }
    store.save_tree(path, weights.tree, weights.notes | metadata)


def load(path: str | os.PathLike[str], *, expect: str | Sequence[str]) -> Weights:
    """Read a file of the format `expect`, or of one of them, float32.

    Raises:
      ValueError: it is missing, damaged, or holds something else; the sentence says where it belongs.
    """
    tree, metadata = store.load_tree(path)
    return parse(path, tree, metadata, expect=expect)


def parse(
    path: str | os.PathLike[str],
    tree: PyTree,
    metadata: Mapping[str, str],
    *,
    expect: str | Sequence[str],
) -> Weights:
    """The same for a file that has been read already (`store.load_tree`)."""
    found = metadata.get("format", "")
    expected = (expect,) if isinstance(expect, str) else expect
    if found not in expected:
        takes = " or ".join(map(repr, expected))
        raise ValueError(
            f"{path} {_what(found)}, but {USES[expected[0]]} takes {takes}; {_hint(found)}"
        )
    try:
        sizes = json.loads(metadata.get("sizes", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} states its sizes in broken JSON ({error}); make it again"
        ) from error
    if not isinstance(sizes, dict):
        raise ValueError(f"{path} states sizes that are no table ({sizes!r}); make it again")
    missing = [part for part in _PARTS[found] if part not in tree]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; make it again")
    return Weights(
        format=found,
        kind=metadata.get("kind", ""),
        sizes=sizes,
        tree={"batch_stats": {}, **_map(tree)} if found != CLIP else _map(tree),
        notes={name: text for name, text in metadata.items() if name not in _FIELDS},
    )


def _what(found: str) -> str:
    return f"is of the format {found!r}" if found else "is no weight file of semivl_jax"


def _hint(found: str) -> str:
    if found in USES:
        return f"name it in {USES[found]}"
    return "make one with python -m semivl_jax.convert"


def _map(tree: PyTree) -> PyTree:
    return {
        name: _map(value) if isinstance(value, dict) else _float32(value)
        for name, value in tree.items()
    }


def _float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)
