"""The project's own weight files.

In and out: safetensors files with the metadata

    format   kind of tree: CLIP, SIGLIP, BACKBONE or SEGMENTER below
    kind     the published format that the weights come from, or the decoder of a model trained here
    sizes    JSON: constructor arguments of the module or modules
    (more)   notes for people

The trees: CLIP {"image", "text", "logit_scale"}; the others {"params", "batch_stats"}, for SIGLIP with
"img", "txt", "t" and "b" in "params" and perhaps "tokenizer", the bytes of its tokenizer.json. Arrays may be
float16; `load` gives float32.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from semivl_jax.models.pos_embed import Grid
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
    SIGLIP: "model.weights",
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

    @property
    def grid(self) -> Grid | None:
        """Rows and columns of the image encoder's position table, if the sizes include them."""
        parts = (self.sizes.get(part) for part in ("image", "img", "backbone"))
        sizes = next((part for part in parts if isinstance(part, dict)), self.sizes)
        match sizes.get("grid"):
            case [int(rows), int(cols)]:
                return rows, cols
        return None


def tokenizer(weights: Weights) -> bytes | None:
    """The contents of a SigLIP's tokenizer.json, if the file has them."""
    found = weights.tree.get("tokenizer")
    return None if found is None else np.asarray(found, np.uint8).tobytes()


def save(path: str | os.PathLike[str], weights: Weights) -> None:
    """Writes the file atomically. Arrays keep their dtype."""
    sizes = json.dumps(weights.sizes)
    metadata = {"format": weights.format, "kind": weights.kind, "sizes": sizes}
    store.save_tree(path, weights.tree, weights.notes | metadata)


def load(path: str | os.PathLike[str], *, expect: str | Sequence[str]) -> Weights:
    """Reads a file of the format `expect`, or of one of them, as float32.

    ValueError if it is missing, damaged or of another format; the message names the key that takes it.
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
    """`load` for a file that has been read already (`store.load_tree`)."""
    found = metadata.get("format", "")
    expected = (expect,) if isinstance(expect, str) else expect
    if found not in expected:
        is_what = f"is of the format {found!r}" if found else "is no weight file of semivl_jax"
        remedy = f"make one with python -m semivl_jax.convert {path} --out FILE.safetensors"
        raise ValueError(
            f"{path} {is_what}, but {USES[expected[0]]} takes {' or '.join(map(repr, expected))}; "
            + (f"name it in {USES[found]}" if found in USES else remedy)
        )
    try:
        sizes = json.loads(metadata.get("sizes", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has sizes in broken JSON ({error}); make it again") from error
    if not isinstance(sizes, dict):
        raise ValueError(f"{path} has sizes that are no JSON object ({sizes!r}); make it again")
    missing = [part for part in _PARTS[found] if part not in tree]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; make it again")
    tree = jax.tree.map(
        lambda array: array if array.dtype == np.uint8 else np.asarray(array, np.float32), tree
    )
    return Weights(
        format=found,
        kind=metadata.get("kind", ""),
        sizes=sizes,
        tree=tree if found == CLIP else {"batch_stats": {}, **tree},
        notes={name: text for name, text in metadata.items() if name not in _FIELDS},
    )
