"""Co2S (arXiv 2512.23035) on aerial, satellite and planetary images in a folder as in `folder.py`.

    python -m semivl_jax.main --config=configs/remote_sensing.py:/path/to/folder,images=loveda,split=1_40
    [,recipe=paper] [,student=dinov3_vits16]

Two students: CLIP ViT-B/16 with texts, and a DINOv3 with class queries. classes.txt names the classes in the
order of the mask values, without value 0 where that is ignored; lists of labelled images are files that
`split` names. Weights: `model.weights` of CLIP, `model.backbone_weights` of DINOv3.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import arguments
from semivl_jax.config import default_config, set_method


@dataclasses.dataclass(frozen=True)
class Images:
    """A published data set: `void` means that mask value 0 is ignored and value 1 is the first class."""

    classes: int
    crop: int = 512
    batch: int = 4  # over all devices
    epochs: float = 80.0
    long_side: bool = False
    void: bool = False


SETS = {
    "whdld": Images(classes=6, crop=256, batch=8, void=True),
    "loveda": Images(classes=7, long_side=True, void=True),
    "potsdam": Images(classes=6, void=True),
    "gid15": Images(classes=15),
    "mer": Images(classes=9, epochs=150.0),
    "msl": Images(classes=9),
}
STUDENTS = ("dinov3_vitb16", "dinov3_vits16", "dinov3_vits16plus")
RECIPES = {
    "default": "a coupling with gradients, an EMA teacher and the reversed batch as CutMix partner",
    "paper": "as released: no gradient in the coupling, the students teach themselves, the same image",
}


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is the folder, optionally followed by kind of images, split, recipe and DINO student."""
    chosen = arguments.parse(
        argument,
        file="configs/remote_sensing.py",
        path="folder",
        folder=None,
        images=SETS,
        split=None,
        recipe=RECIPES,
        student=STUDENTS,
    )
    images = SETS[chosen["images"]]
    config = default_config()
    config.batch = config.optim.published_batch = images.batch
    config.epochs = images.epochs
    config.data.dataset = "folder"
    config.data.folder = chosen["folder"]
    config.data.split = chosen["split"] or "1_8"
    if images.void:
        moved = [f"{value}:{value - 1}" for value in range(1, images.classes + 1)]
        config.data.label_map = ",".join(["0:255", *moved])
    config.data.crop = images.crop
    config.data.resize = "long_side" if images.long_side else "ratio"
    config.evaluation.stride = float(images.crop * 5 // 6)
    _students(config, chosen["student"])
    set_method(config, "co2s")
    if chosen["recipe"] == "paper":
        method = config.method
        method.teacher, method.cutmix_partner = "student", "same_image"
        method.coupling = "published"
    return config


def _students(config: ConfigDict, dino: str) -> None:
    config.model.backbone = dino
    config.model.backbone_weights = f"{dino}.safetensors"
    config.model.init = "random"
    config.model.similarity = "both"
    config.model.out_indices = (2, 7, 11)
    config.model.weights = "clip_vit_b16"
    config.text.decoder = "concept_average"
