"""UniMatch V2 (arXiv 2410.10777): DINOv2 with a DPT head, without language.

    python -m semivl_jax.main --config=configs/unimatch_v2.py:voc,92[,backbone=dinov2_vitb14][,finetune=none]

`model.backbone_weights` names the converted weights of DINOv2. Settings are those of the
public implementation.
"""

from ml_collections import ConfigDict

from configs import ade, arguments, cityscapes, coco, voc
from semivl_jax.config import default_config, set_method

FAMILIES = {"voc": voc, "coco": coco, "ade": ade, "cityscapes": cityscapes}
"""Data set → the file with its splits."""
BATCH = {"voc": 16, "coco": 16, "ade": 8, "cityscapes": 8}
EPOCHS = {"voc": 60.0, "coco": 20.0, "ade": 60.0, "cityscapes": 180.0}
BACKBONES = {
    "dinov2_vits14": {"channels": 64, "out_channels": (48, 96, 192, 384)},
    "dinov2_vitb14": {"channels": 128, "out_channels": (96, 192, 384, 768)},
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
    config.data.crop = 518
    config.data.resize = "long_side"
    _model(config, chosen["backbone"], chosen["finetune"])
    _training(config)
    config.evaluation.mode = "original"
    config.evaluation.short_side = 0
    if dataset == "cityscapes":
        config.data.crop = 798
        config.method.criterion = "ohem"
        config.method.ohem_min_kept = 200_000
        config.evaluation.mode = "shifted_sliding_window"
    return config


def _model(config: ConfigDict, backbone: str, finetune: str) -> None:
    config.model.backbone = backbone
    config.model.backbone_weights = f"{backbone}.safetensors"
    config.model.init = "random"
    config.model.out_indices = (2, 5, 8, 11)
    config.model.finetune = finetune
    config.model.decoder = "dpt"
    config.dpt_decoder.update(BACKBONES[backbone])


def _training(config: ConfigDict) -> None:
    set_method(config, "unimatch_v2")
    config.optim.lr = 5e-6
    config.optim.published_batch = config.batch
    config.optim.backbone_lr = 1.0
    config.optim.decoder_lr = 40.0
