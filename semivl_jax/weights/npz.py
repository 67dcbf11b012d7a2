"""big_vision's .npz checkpoints, both ways.

In: arrays under "/"-joined names: AugReg's ViT (also under the names of its first release), SigLIP and
SigLIP 2 with image tower "img", text tower "txt", temperature "t" and bias "b"; below "params/" or
"opt/target/", or without prefix; blocks separate (encoderblock_3) or stacked as in scanned models
(encoderblock). `plain_names` returns current names without prefix and separate blocks.

`save` writes float32 arrays under "params/" and big_vision's names, which timm reads too. CLIP's `pre_norm`,
which big_vision does not have, keeps its name; CLIP's projection becomes the classifier `head`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from semivl_jax import utils
from semivl_jax.types import PyTree
from semivl_jax.weights import files
from semivl_jax.weights.rename import State
from semivl_jax.weights.tree import flatten

ROOTS = ("params/", "opt/target/")
_RENAMED = (
    ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
    ("Transformer/pos_embedding", "pos_embedding"),
    ("MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
    ("LayerNorm_2/", "LayerNorm_1/"),
    ("MlpBlock_3/", "MlpBlock_0/"),
)
"""Names of AugReg's first release, and the current ones."""


def plain_names(state: State, *, source: str) -> dict[str, np.ndarray]:
    """The parameters under current names, with separate blocks, without optimizer state.

    ValueError for NaFlex towers and for stacked blocks without an axis.
    """
    root = next((root for root in ROOTS if any(name.startswith(root) for name in state)), "")
    plain: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if name.startswith(root):
            for new, block in _unstacked(name.removeprefix(root), array, source=source):
                for old, today in _RENAMED:
                    new = new.replace(old, today)
                plain[new] = block
    for tower in ("", "img/"):
        if np.ndim(plain.get(f"{tower}embedding/kernel")) == 2:
            raise ValueError(
                f"{source} is of the NaFlex kind, for images of any shape; convert one for a fixed resolution"
            )
        _merge_class_position(plain, tower)
    return plain


def _unstacked(name: str, array: np.ndarray, *, source: str) -> list[tuple[str, np.ndarray]]:
    before, scanned, after = name.partition("/encoderblock/")
    if not scanned:
        return [(name, array)]
    if np.ndim(array) == 0:
        raise ValueError(f"{source}: {name} has no axis that its blocks are stacked along")
    return [(f"{before}/encoderblock_{i}/{after}", block) for i, block in enumerate(array)]


def _merge_class_position(state: dict[str, np.ndarray], tower: str) -> None:
    """Adds the first row of older tables, for the class token, to the token."""
    table, token = f"{tower}pos_embedding", f"{tower}cls"
    if token in state and table in state and np.ndim(state[table]) == 3:
        rows = state[table].shape[1]
        if rows > 1 and math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1:
            state[token] = state[token] + state[table][:, :1]
            state[table] = state[table][:, 1:]


def save(path: Path, weights: files.Weights) -> None:
    """Writes towers atomically. ValueError for weights that are no towers."""
    tree = _towers(weights)
    with utils.atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **flatten({"params": tree}))


def _towers(weights: files.Weights) -> PyTree:
    if weights.format == files.CLIP:
        return {
            "img": _clip_image(weights.tree["image"]),
            "txt": _clip_text(weights.tree["text"]),
            "t": np.log(weights.tree["logit_scale"]).reshape(1),
        }
    if weights.format == files.SIGLIP or weights.kind == "big_vision_vit":
        return weights.tree["params"]
    if weights.kind == "imagenet_vit":
        return _without_class_position(weights.tree["params"])
    raise ValueError(
        f"weights of the kind {weights.kind!r} cannot be exported: big_vision's layout is for vision "
        "transformers and text towers"
    )


def _clip_image(params: PyTree) -> PyTree:
    params = _without_class_position(params)
    params["embedding"] = _with_bias(params["embedding"])
    params["head"] = _with_bias(params.pop("projection"))
    return params


def _clip_text(params: PyTree) -> PyTree:
    return {
        "Embed_0": params["token_embedding"],
        "pos_embedding": params["pos_embedding"],
        "Encoder_0": params["Transformer"],
        "head": _with_bias(params["projection"]),
    }


def _with_bias(layer: PyTree) -> PyTree:
    kernel = layer["kernel"]
    return {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}


def _without_class_position(params: PyTree) -> PyTree:
    """In big_vision the class token has no row in the position table: its position is added to the token."""
    table = params["pos_embedding"]
    return {**params, "cls": params["cls"] + table[:, :1], "pos_embedding": table[:, 1:]}
