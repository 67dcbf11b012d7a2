"""big_vision's .npz checkpoints, both ways.

In: arrays under "/"-joined names: AugReg's ViT (also under the names of its first release), SigLIP and
SigLIP 2 with image tower "img", text tower "txt", temperature "t" and bias "b"; below "params/" or
"opt/target/", or bare; blocks one by one (encoderblock_3) or stacked (encoderblock, as scanned models keep
them). `plain_names` gives today's names, bare, block by block.

Out of `save`: a .npz file of float32 arrays under "params/" and big_vision's names, which timm reads, too.
What big_vision's ViT does not have: CLIP's `pre_norm` keeps its name, CLIP's projection becomes the
classifier `head`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from semivl_jax import utils
from semivl_jax.types import PyTree
from semivl_jax.weights import files
from semivl_jax.weights.translate import State
from semivl_jax.weights.tree import flatten

ROOTS = ("params/", "opt/target/")
_RENAMED = (
    ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
    ("Transformer/pos_embedding", "pos_embedding"),
    ("MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
    ("LayerNorm_2/", "LayerNorm_1/"),
    ("MlpBlock_3/", "MlpBlock_0/"),
)
"""Names of AugReg's first release, and those since."""


def plain_names(state: State, *, source: str) -> dict[str, np.ndarray]:
    """The parameters alone under today's names, block by block; optimizer state is left out.

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
    """Older tables have a first row for the class token, which is added to the token."""
    table, token = f"{tower}pos_embedding", f"{tower}cls"
    if token in state and table in state and np.ndim(state[table]) == 3:
        rows = state[table].shape[1]
        if rows > 1 and math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1:
            state[token] = state[token] + state[table][:, :1]
            state[table] = state[table][:, 1:]


def save(path: Path, weights: files.Weights) -> None:
    """Writes towers; the file appears complete or not at all. ValueError for weights that are no towers."""
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
        f"weights of the kind {weights.kind!r} have no place in big_vision's layout, which is for vision "
        "transformers and text towers"
    )


def _clip_image(params: PyTree) -> PyTree:
    params = _without_class_position(params)
    kernel = params["embedding"]["kernel"]
    params["embedding"] = {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}
    params["head"] = _head(params.pop("projection"))
    return params


def _clip_text(params: PyTree) -> PyTree:
    return {
        "Embed_0": params["token_embedding"],
        "pos_embedding": params["pos_embedding"],
        "Encoder_0": params["Transformer"],
        "head": _head(params["projection"]),
    }


def _head(projection: PyTree) -> PyTree:
    kernel = projection["kernel"]
    return {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}


def _without_class_position(params: PyTree) -> PyTree:
    """big_vision adds positions before the class token is put in front: its own is part of the token."""
    table = params["pos_embedding"]
    return {**params, "cls": params["cls"] + table[:, :1], "pos_embedding": table[:, 1:]}
