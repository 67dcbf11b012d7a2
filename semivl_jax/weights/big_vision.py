"""big_vision's .npz checkpoints -> our towers.

In: arrays under "/"-joined names: AugReg's ViT (also under the older names of its first release), SigLIP and
SigLIP 2 with image tower "img", text tower "txt", temperature "t" and bias "b"; below "params/" or
"opt/target/", or bare; blocks one by one (encoderblock_3) or stacked (encoderblock, as scanned models keep
them). Out: `files.Weights` whose trees have the same names and values. (The other way: `weights.npz`.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.models.siglip import Siglip, SiglipText
from semivl_jax.models.vit import AUGREG, VisionTransformer
from semivl_jax.weights import files
from semivl_jax.weights.blueprint import checked, image_like, tupled
from semivl_jax.weights.layout import Rule, count, shape

State = Mapping[str, np.ndarray]

_ROOTS = ("params/", "opt/target/")
_UNCHANGED = Rule("(.*)", r"params/\1")

# The names of AugReg's first release -> those since.
_OLD_NAMES = (
    ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
    ("Transformer/pos_embedding", "pos_embedding"),
    ("MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
    ("LayerNorm_2/", "LayerNorm_1/"),
    ("MlpBlock_3/", "MlpBlock_0/"),
)


def is_vit(names: Mapping[str, Any]) -> bool:
    """Whether these are names of an image tower alone."""
    return any(f"{root}embedding/kernel" in names for root in ("", *_ROOTS))


def is_siglip(names: Mapping[str, Any]) -> bool:
    """Whether these are names of an image and a text tower."""
    return any(f"{root}img/embedding/kernel" in names for root in ("", *_ROOTS))


def from_vit(state: State, *, source: str) -> files.Weights:
    """An image tower alone: AugReg's ViT, or one that was taken out of SigLIP. A classifier is dropped."""
    state = _plain(state, source=source)
    sizes = _vit_sizes(state, prefix="", source=source)
    return checked(
        state,
        (Rule(r"(head|pre_logits)/(kernel|bias)", None), _UNCHANGED),
        plain_vit(sizes),
        image_like(sizes["grid"][0] * sizes["patch_size"]),
        format=files.BACKBONE,
        kind="big_vision_vit",
        sizes=sizes,
        source=source,
    )


def from_siglip(state: State, *, source: str) -> files.Weights:
    """Both towers of SigLIP or SigLIP 2, with temperature and bias."""
    state = _plain(state, source=source)
    sizes = {
        "img": _vit_sizes(state, prefix="img/", source=source),
        "txt": _text_sizes(state, prefix="txt/", source=source),
    }
    dims = sizes["img"]["width"], sizes["txt"]["out_dim"]
    if dims[0] != dims[1]:
        raise ValueError(
            f"{source}: images are embedded in {dims[0]} dimensions, words in {dims[1]}; these are not "
            "the towers of one model"
        )
    ids = jax.ShapeDtypeStruct((1, sizes["txt"]["context_length"]), jnp.int32)
    return checked(
        state,
        (_UNCHANGED,),
        siglip(sizes),
        image_like(sizes["img"]["grid"][0] * sizes["img"]["patch_size"]),
        ids,
        format=files.SIGLIP,
        kind="siglip",
        sizes=sizes,
        source=source,
    )


def plain_vit(sizes: Mapping[str, Any]) -> VisionTransformer:
    """The module of these sizes that returns the tokens of its last block."""
    return VisionTransformer(**{**AUGREG, **tupled(sizes)}, out_indices=(sizes["depth"] - 1,))


def siglip(sizes: Mapping[str, Any]) -> Siglip:
    """The module of these sizes ("img", "txt")."""
    return Siglip(img=plain_vit(sizes["img"]), txt=SiglipText(**sizes["txt"]))


def _plain(state: State, *, source: str) -> dict[str, np.ndarray]:
    """The parameters alone under today's names, block by block."""
    root = next((root for root in _ROOTS if any(name.startswith(root) for name in state)), "")
    plain: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if name.startswith(root):
            for new, value in _unstacked(name.removeprefix(root), array, source=source):
                for old, today in _OLD_NAMES:
                    new = new.replace(old, today)
                plain[new] = value
    for tower in ("", "img/"):
        _separate_class_token(plain, tower)
    return plain


def _unstacked(name: str, array: np.ndarray, *, source: str) -> list[tuple[str, np.ndarray]]:
    before, scanned, after = name.partition("/encoderblock/")
    if not scanned:
        return [(name, array)]
    if np.ndim(array) == 0:
        raise ValueError(f"{source}: {name} has no axis that its blocks are stacked along")
    return [(f"{before}/encoderblock_{i}/{after}", block) for i, block in enumerate(array)]


def _separate_class_token(state: dict[str, np.ndarray], tower: str) -> None:
    """Older towers add positions behind the class token, so the token has one, too: put into the token."""
    table, token = f"{tower}pos_embedding", f"{tower}cls"
    if token in state and table in state and np.ndim(state[table]) == 3:
        rows = state[table].shape[1]
        if rows > 1 and math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1:
            state[token] = state[token] + state[table][:, :1]
            state[table] = state[table][:, 1:]


def _vit_sizes(state: State, *, prefix: str, source: str) -> dict[str, Any]:
    if f"{prefix}embedding/kernel" in state and np.ndim(state[f"{prefix}embedding/kernel"]) == 2:
        raise ValueError(
            f"{source} is of the NaFlex kind, for images of any shape; convert one for a fixed resolution"
        )
    patch, _, _, width = shape(state, f"{prefix}embedding/kernel", 4, source=source)
    rows = shape(state, f"{prefix}pos_embedding", 3, source=source)[1]
    side = math.isqrt(rows)
    if side * side != rows:
        raise ValueError(
            f"{source}: a position table of {rows} rows is not square, so its grid is unknown"
        )
    return {
        "patch_size": patch,
        **_encoder_sizes(state, f"{prefix}Transformer", source),
        "width": width,
        "grid": [side, side],
        "class_token": f"{prefix}cls" in state,
        "map_head": f"{prefix}MAPHead_0/probe" in state,
    }


def _text_sizes(state: State, *, prefix: str, source: str) -> dict[str, Any]:
    vocabulary, width = shape(state, f"{prefix}Embed_0/embedding", 2, source=source)
    return {
        "vocab_size": vocabulary,
        "width": width,
        **_encoder_sizes(state, f"{prefix}Encoder_0", source),
        "out_dim": shape(state, f"{prefix}head/kernel", 2, source=source)[1],
        "context_length": shape(state, f"{prefix}pos_embedding", 3, source=source)[1],
    }


def _encoder_sizes(state: State, encoder: str, source: str) -> dict[str, int]:
    block = f"{encoder}/encoderblock_0"
    query = f"{block}/MultiHeadDotProductAttention_0/query/kernel"
    return {
        "depth": count(state, rf"{re.escape(encoder)}/encoderblock_(\d+)/"),
        "num_heads": shape(state, query, 3, source=source)[1],
        "mlp_dim": shape(state, f"{block}/MlpBlock_0/Dense_0/kernel", 2, source=source)[1],
    }
