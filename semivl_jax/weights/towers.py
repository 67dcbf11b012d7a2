"""The two towers of a CLIP or SigLIP from a file.

In: a safetensors file of `semivl_jax.convert` or `semivl_jax.pretrain`, or OpenAI's CLIP under its own names.
Out: `Clip`, float32 NumPy parameters and the constructor arguments of `VisionTransformer` (without grid and
out_indices) and `clip_text.text_tower`.

Files of `pretrain` are float16 and hold only the token embeddings that occurred in training. The others are
initial values, computed from the seed in the file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float32

from semivl_jax import utils
from semivl_jax.models.clip_text import text_tower
from semivl_jax.models.pos_embed import Grid, Resizing, resize_table
from semivl_jax.models.vit import VisionTransformer, dense_kind
from semivl_jax.types import PyTree
from semivl_jax.weights import convert, files, foreign_files, layout, store
from semivl_jax.weights.layout import table_grid
from semivl_jax.weights.tree import check

FORMAT = "semivl_jax clip 1"
"""Format of the files of `pretrain`."""
DEMO = Path(__file__).with_name("demo_clip.safetensors")
"""The small CLIP of the demo, pretrained on images and captions of `shapes`."""

PREPARED = Path(utils.WEIGHTS_DIRECTORY)
"""Folder of the weights "clip_vit_b16", written by `python -m semivl_jax.prepare weights`."""


def _siglip_image(patch: int, width: int, depth: int, heads: int, mlp: int) -> dict[str, Any]:
    sizes = dict(zip(_IMAGE[:5], (patch, width, depth, heads, mlp), strict=True))
    return sizes | {"class_token": False, "map_head": True}


def _siglip_text(width: int, depth: int, heads: int, mlp: int) -> dict[str, Any]:
    sizes = dict(zip(_TEXT, (256_000, width, depth, heads, width, 64), strict=True))
    return sizes | {"mlp_dim": mlp}


_IMAGE = ("patch_size", "width", "depth", "num_heads", "mlp_dim", "out_dim")
_TEXT = ("vocab_size", "width", "depth", "num_heads", "out_dim", "context_length")
IMAGE_SIZES = {
    "clip_vit_b16": dict(zip(_IMAGE, (16, 768, 12, 12, 3072, 512), strict=True)),
    "tiny": dict(zip(_IMAGE, (8, 16, 2, 2, 32, 16), strict=True)),
    "siglip2_b16": _siglip_image(16, 768, 12, 12, 3072),
    "siglip2_l16": _siglip_image(16, 1024, 24, 16, 4096),
    "siglip2_so400m14": _siglip_image(14, 1152, 27, 16, 4304),
    "siglip2_so400m16": _siglip_image(16, 1152, 27, 16, 4304),
}
TEXT_SIZES = {
    "clip_vit_b16": dict(zip(_TEXT, (49408, 512, 12, 8, 512, 77), strict=True)),
    "tiny": dict(zip(_TEXT, (49408, 8, 1, 2, 16, 77), strict=True)),
    "siglip2_b16": _siglip_text(768, 12, 12, 3072),
    "siglip2_l16": _siglip_text(1024, 24, 16, 4096),
    "siglip2_so400m14": _siglip_text(1152, 27, 16, 4304),
    "siglip2_so400m16": _siglip_text(1152, 27, 16, 4304),
}
"""`tiny` has no trained weights; it is for trying out a configuration or the code."""
_GRID = (14, 14)  # of CLIP's own position table
_TOKEN_STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Two towers: constructor arguments and parameters.

    stored_grid   rows and columns of the image tower's position table; None: square
    logit_bias    of a SigLIP; None: of a CLIP, which has none
    tokenizer     contents of a SigLIP's tokenizer.json, if its file has them
    """

    image: dict[str, Any]
    image_params: PyTree
    text: dict[str, Any]
    text_params: PyTree
    logit_scale: float
    stored_grid: Grid | None = None
    logit_bias: float | None = None
    tokenizer: bytes | None = None

    @property
    def class_rows(self) -> int:
        """Rows of the image tower's position table before those of the grid."""
        return int(self.image.get("class_token", True))

    @property
    def grid(self) -> Grid:
        """Rows and columns of the image tower's position table. ValueError if they are unknown."""
        patches = self.image_params["pos_embedding"].shape[1] - self.class_rows
        return table_grid(patches, self.stored_grid, source="the image tower")


def load(weights: str | os.PathLike[str], tower: str) -> Clip:
    """The towers in a file, of "demo" (part of the package), of "clip_vit_b16" (prepared) or of "random".

    `tower` names the sizes of "random". ValueError for an empty or missing path, an unknown tower, a file
    that is no CLIP or damaged.
    """
    if not str(weights):
        raise ValueError(
            "model.weights is empty; name a safetensors file with CLIP weights, or `demo`"
        )
    if str(weights) == "random":
        return initialised(tower)
    path = _path(str(weights))
    tree, metadata = store.load_tree(path)
    if metadata.get("format") == FORMAT:
        return _load_pretrained(path, tree, metadata)
    if "visual.conv1.weight" in tree:
        openai = convert.convert(foreign_files.read(path))
        return _clip(path, dataclasses.replace(openai, tree=jax.tree.map(_single, openai.tree)))
    if metadata.get("format") == files.SIGLIP:
        clip = _siglip(path, files.parse(path, tree, metadata, expect=files.SIGLIP))
    else:
        clip = _clip(path, files.parse(path, tree, metadata, expect=files.CLIP))
    _check(clip, path)
    return clip


def _path(weights: str) -> Path:
    if weights == "demo":
        return DEMO
    if weights != "clip_vit_b16":
        return Path(weights)
    prepared = (PREPARED / f"{weights}.safetensors").expanduser()
    if not prepared.exists():
        raise ValueError(
            f"model.weights = {weights!r} is not prepared yet ({prepared}); run python -m "
            "semivl_jax.prepare weights"
        )
    return prepared


def resized(clip: Clip, grid: Grid, *, resizing: Resizing = "bicubic") -> PyTree:
    """The image tower's parameters with its position table for another grid."""
    table = resize_table(
        clip.image_params["pos_embedding"],
        clip.grid,
        grid,
        resizing=resizing,
        class_rows=clip.class_rows,
    )
    return {**clip.image_params, "pos_embedding": np.asarray(table)}


def initialised(tower: str) -> Clip:
    """Initialised towers with CLIP's 14×14 position table. ValueError for an unknown name.

    Those of a SigLIP read CLIP's tokens.
    """
    image, text = _sizes(tower)
    vision = image_tower({**image, "depth": 1}, _GRID)
    pixels = jnp.zeros((1, *(side * vision.patch_size for side in _GRID), 3))
    ids = jnp.zeros((1, text["context_length"]), jnp.int32)
    return Clip(
        image=image,
        image_params=_initialise(vision, image["depth"], 0, pixels),
        text=text,
        text_params=_initialise(text_tower({**text, "depth": 1}), text["depth"], 1, ids),
        logit_scale=100.0,
    )


def abstract_clip(tower: str) -> Clip:
    """CLIP to trace a step without weights: image parameters are shapes, there are no text parameters.

    ValueError for an unknown name.
    """
    image, text = _sizes(tower)
    return Clip(
        image=image,
        image_params=image_shapes(image, _GRID),
        text=text,
        text_params={},
        logit_scale=100.0,
    )


def image_shapes(image: dict[str, Any], grid: Grid) -> PyTree:
    """Shapes of the image tower's parameters with a position table for this grid."""
    return layout.variables(image_tower(image, grid), layout.image())["params"]


def image_tower(image: dict[str, Any], grid: Grid) -> VisionTransformer:
    """The image tower with the dense embedding as its only map."""
    options = {**image, **dense_kind(image)}
    return VisionTransformer(**options, grid=grid, out_indices=(image["depth"],))


def save(
    path: str | os.PathLike[str],
    *,
    towers: Clip,
    token_ids: np.ndarray,
    token_seed: int,
    notes: dict[str, str],
) -> None:
    """Writes towers as float16; of the token embeddings only rows `token_ids` int[k], ascending.

    `token_seed` must be the seed of the table's other rows (`token_table`).
    """
    text = dict(towers.text_params)
    table = np.asarray(text.pop("token_embedding")["embedding"])
    text["token_embedding"] = {"rows": table[token_ids]}
    half = jax.tree.map(
        lambda array: np.asarray(array, np.float16), {"image": towers.image_params, "text": text}
    )
    tree = half | {
        "token_ids": np.asarray(token_ids, np.int32),
        "logit_scale": np.float32(towers.logit_scale),
    }
    metadata = {
        "format": FORMAT,
        "image": json.dumps(towers.image),
        "text": json.dumps(towers.text),
        "token_seed": str(token_seed),
    }
    store.save_tree(path, tree, metadata | notes)


def token_table(seed: int, vocab_size: int, width: int) -> Float32[np.ndarray, "v w"]:
    """Initial token embeddings, standard deviation 0.02.

    From random bits, whose sequence NumPy guarantees, unlike that of its distributions.
    """
    bits = np.random.Philox(seed).random_raw(vocab_size * width // 2 + 1).view(np.uint32)
    unit = bits[: vocab_size * width].astype(np.float32) / np.float32(2**32) - np.float32(0.5)
    return (unit * np.float32(_TOKEN_STD * 12**0.5)).reshape(vocab_size, width)


def _sizes(tower: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if tower not in IMAGE_SIZES:
        raise ValueError(
            f"model.tower = {tower!r} is no known tower; use one of {', '.join(IMAGE_SIZES)}"
        )
    return IMAGE_SIZES[tower], TEXT_SIZES[tower]


def _initialise(tower: nn.Module, depth: int, seed: int, inputs: Array) -> PyTree:
    """Parameters for `depth` blocks from a tower with one block, which compiles faster."""
    key = jax.random.key(seed)
    params = jax.jit(tower.init)(key, inputs)["params"]
    encoder = next(name for name in ("Transformer", "Encoder_0") if name in params)
    block = jax.jit(lambda key: tower.init(key, inputs)["params"][encoder]["encoderblock_0"])
    for index in range(1, depth):
        params[encoder][f"encoderblock_{index}"] = block(jax.random.fold_in(key, index))
    return jax.tree.map(np.asarray, params)


def _load_pretrained(path: Path, tree: PyTree, metadata: dict[str, str]) -> Clip:
    try:
        sizes = {tower: json.loads(metadata[tower]) for tower in ("image", "text")}
        table = token_table(
            int(metadata["token_seed"]), sizes["text"]["vocab_size"], sizes["text"]["width"]
        )
        table[tree["token_ids"]] = tree["text"]["token_embedding"]["rows"]
        params = {tower: jax.tree.map(_single, tree[tower]) for tower in ("image", "text")}
        params["text"]["token_embedding"] = {"embedding": table}
        params["logit_scale"] = tree["logit_scale"]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path} lacks a part of its towers, or it is damaged ({error}); "
            "write it again with python -m semivl_jax.pretrain"
        ) from error
    clip = _clip(path, files.Weights(format=FORMAT, kind="", sizes=sizes, tree=params))
    _check(clip, path)
    return clip


def _clip(path: Path, weights: files.Weights) -> Clip:
    if not {"image", "text"} <= weights.sizes.keys():
        raise ValueError(f"{path} lacks the sizes of both towers; convert it again")
    tree, sizes = weights.tree, weights.sizes
    return Clip(
        image={name: size for name, size in sizes["image"].items() if name != "grid"},
        image_params=tree["image"],
        text=sizes["text"],
        text_params=tree["text"],
        logit_scale=float(np.reshape(tree["logit_scale"], ())),
        stored_grid=weights.grid,
    )


def _siglip(path: Path, weights: files.Weights) -> Clip:
    sizes, params = weights.sizes, weights.tree["params"]
    if not {"img", "txt"} <= sizes.keys() or not sizes["img"].get("map_head"):
        raise ValueError(f"{path} lacks the sizes of both towers of a SigLIP; convert it again")
    return Clip(
        image={name: size for name, size in sizes["img"].items() if name != "grid"},
        image_params=params["img"],
        text=sizes["txt"],
        text_params=params["txt"],
        logit_scale=float(np.exp(params["t"]).item()),
        logit_bias=float(params["b"].item()),
        stored_grid=weights.grid,
        tokenizer=files.tokenizer(weights),
    )


def _check(clip: Clip, path: Path) -> None:
    """ValueError unless the parameters are those of towers of these sizes."""
    try:
        text = layout.variables(text_tower(clip.text), layout.token_ids(clip.text))["params"]
        like = image_shapes(clip.image, clip.grid), text
    except Exception as error:  # from any module, for wrong sizes
        raise ValueError(
            f"{path} has sizes that make no towers ({error}); make it again with "
            "python -m semivl_jax.convert or python -m semivl_jax.pretrain"
        ) from error
    check(clip.image_params, like[0], source=f"{path} (image tower)")
    check(clip.text_params, like[1], source=f"{path} (text tower)")


def _single(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)
