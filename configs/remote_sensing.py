"""Co2S (arXiv 2512.23035) on aerial, satellite and planetary images in a folder as in `folder.py`.

    python -m semivl_jax.main --config=configs/remote_sensing.py:/path/to/folder,images=loveda,split=1_40
    [,recipe=paper] [,student=dinov3_vits16]

Two students: CLIP ViT-B/16 with texts, and a DINOv3 with class queries. classes.txt names the classes in the
order of the mask values, without value 0 where that is ignored; lists of labelled images are files that
`split` names. Weights: `model.weights` of CLIP, `model.backbone_weights` of DINOv3.
"""

from ml_collections import ConfigDict

from configs import arguments
from semivl_jax.config import default_config, set_method

SETS = {"whdld": 6, "loveda": 7, "potsdam": 6, "gid15": 15, "mer": 9, "msl": 9}
"""Published data set → its classes."""
VOID = ("whdld", "loveda", "potsdam")
"""Mask value 0 is ignored and value 1 is the first class."""
SMALL = ("whdld",)
"""Crops of 256 pixels, eight in a batch instead of four of 512."""
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
    images = chosen["images"]
    crop, batch = (256, 8) if images in SMALL else (512, 4)
    config = default_config()
    config.batch = config.optim.published_batch = batch
    config.epochs = 150.0 if images == "mer" else 80.0
    config.data.dataset = "folder"
    config.data.folder = chosen["folder"]
    config.data.split = chosen["split"] or "1_8"
    if images in VOID:
        moved = [f"{value}:{value - 1}" for value in range(1, SETS[images] + 1)]
        config.data.label_map = ",".join(["0:255", *moved])
    config.data.crop = crop
    config.data.resize = "long_side" if images == "loveda" else "ratio"
    config.evaluation.stride = float(crop * 5 // 6)
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
