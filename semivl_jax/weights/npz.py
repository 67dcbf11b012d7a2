"""Our towers in big_vision's .npz layout.

In: `files.Weights` that hold towers. Out: a .npz file of float32 arrays under "params/" and big_vision's
names, which timm and `weights.big_vision` read, too. What big_vision's ViT does not have: CLIP's `pre_norm`
keeps its name, CLIP's projection becomes the classifier `head`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights import files
from semivl_jax.weights.tree import flatten


def save(path: Path, weights: files.Weights) -> None:
    """Write the file; it appears complete or not at all. ValueError for weights that are no towers."""
    tree = _towers(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as stream:
            np.savez(stream, **flatten({"params": tree}))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


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
    """big_vision puts the class token in front after positions were added: its own is in the token."""
    table = params["pos_embedding"]
    return {**params, "cls": params["cls"] + table[:, :1], "pos_embedding": table[:, 1:]}
