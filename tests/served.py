"""Small models on disk as a run leaves them, never trained."""

import functools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import tiny
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.inference import bundle
from semivl_jax.models import build
from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.text import class_text
from semivl_jax.weights import towers
from tests.models.initialisation import random_variables

INFO = DatasetInfo(
    name="toy",
    classes=("ground", "disc", "box"),
    definitions=(("ground", "floor"), ("disc",), ("box", "crate", "parcel")),
)
METRICS = {"step": 8, "eval/miou": 12.5, "eval/miou_ema": 34.25, "eval/iou/ground": 50.0}


@functools.cache
def clip() -> towers.Clip:
    """Towers of the smallest size; the project's own untrained ones take long to compile."""
    image, text = towers.IMAGE_SIZES["tiny"], towers.TEXT_SIZES["tiny"]
    vision = VisionTransformer(**CLIP, **image, grid=(4, 4), out_indices=(image["depth"],))
    pixels = np.zeros((1, 32, 32, 3), np.float32)
    ids = np.zeros((1, text["context_length"]), np.int32)
    words = random_variables(TextTransformer(**text), ids)["params"]
    # Drawn like a matrix it would be tiny, and all words the same.
    words["token_embedding"]["embedding"] *= 200
    return towers.Clip(
        image=image,
        image_params=random_variables(vision, pixels)["params"],
        text=text,
        text_params=words,
        logit_scale=100.0,
    )


def config(**fields) -> ConfigDict:
    changed = tiny.get_config()
    changed.text.cache = ""
    changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return changed


def text(info: DatasetInfo = INFO, mode: str = "name"):
    return class_text.class_text(info, mode=mode, tower=class_text.TextTower.of(clip()), cache="")


def make(folder: Path, *, info: DatasetInfo = INFO, seed: int = 0, **fields) -> Path:
    """`folder` with a model of configs/tiny.py, `fields` changed; weights drawn at random."""
    changed = config(**fields)
    model = build.segmenter(changed, num_classes=info.num_classes, clip_sizes=clip().image)
    about = text(info, changed.text.decoder)
    image = np.zeros((1, changed.data.crop, changed.data.crop, 3), np.float32)
    bundle.save(
        folder,
        random_variables(model, image, about, seed=seed),
        text=about,
        tower=class_text.TextTower.of(clip()),
        clip_sizes=clip().image,
        info=info,
        config=changed,
        metrics=METRICS,
    )
    return folder
