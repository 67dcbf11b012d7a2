"""UniMatch V2 (arXiv 2410.10777): DINOv2 or DINOv3 with a DPT head, without language.

    python -m semivl_jax.main --config=configs/unimatch_v2.py:voc,92[,backbone=dinov2_vitb14][,finetune=none]

`model.backbone_weights` names the converted weights of the encoder. Settings are those of the public
implementation, which has DINOv2; crops for DINOv3 are whole patches of 16 pixels.
"""

from ml_collections import ConfigDict

from configs import ade, arguments, cityscapes, coco, voc
from semivl_jax.config import default_config, set_method

FAMILIES = {"voc": voc, "coco": coco, "ade": ade, "cityscapes": cityscapes}
"""Data set → the file with its splits."""
BATCH = {"voc": 16, "coco": 16, "ade": 8, "cityscapes": 8}
EPOCHS = {"voc": 60.0, "coco": 20.0, "ade": 60.0, "cityscapes": 180.0}
_SMALL = {"channels": 64, "out_channels": (48, 96, 192, 384)}
_BASE = {"channels": 128, "out_channels": (96, 192, 384, 768)}
_LARGE = {"channels": 256, "out_channels": (256, 512, 1024, 1024)}
BACKBONES = {
    "dinov2_vits14": _SMALL,
    "dinov2_vitb14": _BASE,
    "dinov3_vits16": _SMALL,
    "dinov3_vits16plus": _SMALL,
    "dinov3_vitb16": _BASE,
    "dinov3_vitl16": _LARGE,
}
"""Encoder → the head that belongs to it."""
FINETUNE = {
    "all": "encoder and head are trained",
    "none": "the encoder stays as it is",
}


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a data set and one of its splits, optionally followed by encoder and fine-tuning."""
    parts = [part.removeprefix("dataset=") for part in argument.split(",")]
    family = FAMILIES.get(next((part for part in parts if part in FAMILIES), ""), voc)
    chosen = arguments.parse(
        argument,
        file="configs/unimatch_v2.py",
        dataset=FAMILIES,
        split=family.SPLITS,
        backbone=BACKBONES,
        finetune=FINETUNE,
    )
    dataset = chosen["dataset"]
    config = default_config()
    config.batch, config.epochs = BATCH[dataset], EPOCHS[dataset]
    config.data.dataset = family.semivl(chosen["split"]).data.dataset
    config.data.split = chosen["split"]
    patches_of_14 = chosen["backbone"].startswith("dinov2")
    config.data.crop = 518 if patches_of_14 else 512
    config.data.resize = "long_side"
    _model(config, chosen["backbone"], chosen["finetune"])
    _training(config)
    config.evaluation.mode = "original"
    config.evaluation.short_side = 0
    if dataset == "cityscapes":
        config.data.crop = 798 if patches_of_14 else 800
        config.method.criterion = "ohem"
        config.method.ohem_min_kept = 200_000
        config.evaluation.mode = "shifted_sliding_window"
    return config


def _model(config: ConfigDict, backbone: str, finetune: str) -> None:
    config.model.backbone = backbone
    config.model.backbone_weights = f"{backbone}.safetensors"
    config.model.init = "random"
    config.model.out_indices = (4, 11, 17, 23) if backbone == "dinov3_vitl16" else (2, 5, 8, 11)
    config.model.finetune = finetune
    config.model.decoder = "dpt"
    config.dpt_decoder.update(BACKBONES[backbone])


def _training(config: ConfigDict) -> None:
    set_method(config, "unimatch_v2")
    config.optim.lr = 5e-6
    config.optim.published_batch = config.batch
    config.optim.backbone_lr = 1.0
    config.optim.decoder_lr = 40.0
