"""Initial weights from files.

In: a configuration and its segmenter. Out: variables {"params": {part: …}, "batch_stats": {part: …}} of the
parts for which there is a file, float32 NumPy arrays. By precedence:

    model.checkpoint             every part: a converted segmenter, or the `serving/` folder of a run
    model.backbone_weights       the backbone: an image encoder with ImageNet or DINOv2 weights
    model.conv_encoder_weights   the convolutional encoder
    model.weights                the backbone, where model.init = "clip"; the CLIP beside a DINO

Names and shapes must be exactly the model's; only position tables are resized to its grid.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from semivl_jax import utils
from semivl_jax.experiment import build_step
from semivl_jax.inference import bundle
from semivl_jax.models.mobile import MobileNet
from semivl_jax.models.pos_embed import Grid
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.models.two_towers import TwoTowers
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import files, packaged
from semivl_jax.weights.tree import check


def variables(
    config: ConfigDict, segmenter: SegmentationModel, text: ClassText | None, *, clip: PyTree | None
) -> PyTree | None:
    """The variables to begin with, None where all are initialised; `clip` is the CLIP tower's parameters,
    or {"clip": …} of the one beside a DINO.

    ValueError for a file that is missing, damaged or of another model.
    """
    model = config.model
    if model.checkpoint:
        like = jax.eval_shape(lambda: build_step.init_variables(segmenter, text, config.seed))
        return _load_segmenter(_file_in(model.checkpoint), segmenter, like)
    start: PyTree = {"params": {} if clip is None else {"backbone": clip}, "batch_stats": {}}
    for part in ("backbone", "conv_encoder"):
        key = f"{part}_weights"
        if model[key]:
            module = getattr(segmenter, part)
            beside = isinstance(module, TwoTowers)  # CLIP, which has its weights already
            found = _load_part(
                packaged.locate(model[key]), module.dino if beside else module, key=key
            )
            loaded = found["params"]
            start["params"][part] = {**clip, "dino": loaded} if beside else loaded
            if found["batch_stats"]:
                start["batch_stats"][part] = found["batch_stats"]
    return start if start["params"] else None


def _file_in(path: str) -> Path:
    """The weights file, also for a `serving/` folder."""
    found = utils.user_path(path)
    if not found.is_dir():
        return found
    bundle.verify(found, ["model.safetensors"])
    return found / "model.safetensors"


def _load_part(path: Path, module: nn.Module, *, key: str) -> PyTree:
    weights = files.load(path, expect=(files.BACKBONE, files.SIGLIP))
    tree = weights.tree
    if weights.format == files.SIGLIP:
        tree = {"params": tree["params"]["img"], "batch_stats": {}}
    if isinstance(module, MobileNet):
        tree = _mobile_encoder(weights, module, source=f"model.{key} = {path}")
    tree["params"] = _at_grid(tree["params"], module, path, weights.grid)
    image = jnp.zeros((1, 64, 64, 3))  # the parameters are the same for every size
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), image))
    check(tree, {"batch_stats": {}, **like}, source=f"model.{key} = {path}")
    return tree


def _mobile_encoder(weights: files.Weights, module: MobileNet, *, source: str) -> PyTree:
    """The weights without head and classifier. ValueError if they were trained with another padding."""
    if weights.sizes.get("tf", module.tf) != module.tf:
        trained = {True: "efficientnet_lite0", False: "timm_efficientnet_lite0"}
        raise ValueError(
            f"{source} was trained with another padding, epsilon and normalisation of images; set "
            f"model.backbone = {trained[not module.tf]!r}"
        )
    drop = ("head", "classifier")
    return {
        collection: {name: part for name, part in branch.items() if name not in drop}
        for collection, branch in weights.tree.items()
    }


def _load_segmenter(path: Path, segmenter: SegmentationModel, like: PyTree) -> PyTree:
    weights = files.load(path, expect=files.SEGMENTER)
    tree = weights.tree
    if "backbone" in tree["params"]:
        backbone = tree["params"]["backbone"]
        tree["params"]["backbone"] = _at_grid(backbone, segmenter.backbone, path, weights.grid)
    check(tree, like, source=f"model.checkpoint = {path}")
    return tree


def _at_grid(params: PyTree, encoder: nn.Module, path: Path, stored: Grid | None) -> PyTree:
    """Parameters with the position table resized from the grid `stored` to the encoder's."""
    table = params.get("pos_embedding")
    if not isinstance(encoder, VisionTransformer) or table is None or table.ndim != 3:
        return params  # `check` reports a missing or wrong table
    resized = encoder.resized_table(table, stored=stored, source=str(path))
    return {**params, "pos_embedding": resized}
