"""CW-BASS: weights by confidence, class boundaries, adaptive thresholds.

    python -m semivl_jax.main --config=configs/cw_bass.py:voc,92[,version=v1|v2][,threshold=floor]

v2 (arXiv 2608.12773) trains DINOv2 ViT-B/14 with a DPT head, v1 (arXiv 2502.15152) ResNet-50 with DeepLabV3+.
`threshold` is a rule of semivl_jax/train/thresholds.py. `model.backbone_weights` names the encoder's weights.
"""

from ml_collections import ConfigDict

from configs import arguments, unimatch_v2
from semivl_jax.config import set_method

VERSIONS = {
    "v2": "DINOv2 ViT-B/14 with a DPT head, one strong view",
    "v1": "ResNet-50 with DeepLabV3+, the weak view only",
}
RULES = {
    "default": "floor of v2, dynamic of v1",
    "fixed": "method.confidence_threshold",
    "dynamic": "follows the mean confidence of the batch",
    "class_mean": "follows the mean of the classes' running confidences",
    "floor": "at least 0.95 times the running confidence",
    "class_adaptive": "per class, of least risk on calibration images",
    "gate": "fixed while the teacher is reliable on calibration images, else floor",
    "free_match": "per class, FreeMatch",
    "soft_match": "Gaussian weights, SoftMatch",
}
CALIBRATED = ("floor", "class_adaptive", "gate")
V1_LR = {"voc": 1e-3, "cityscapes": 4e-3}  # at batch 16
V1_CROP = {"voc": 321, "cityscapes": 721}
V1_EPOCHS = {"voc": 80.0, "cityscapes": 240.0}


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a data set and one of its splits, optionally followed by version and threshold."""
    parts = [part.removeprefix("dataset=") for part in argument.split(",")]
    dataset = next((part for part in parts if part in unimatch_v2.FAMILIES), "voc")
    chosen = arguments.parse(
        argument,
        file="configs/cw_bass.py",
        dataset=unimatch_v2.FAMILIES,
        split=unimatch_v2.FAMILIES[dataset].SPLITS,
        version=VERSIONS,
        threshold=RULES,
    )
    version, rule = chosen["version"], chosen["threshold"]
    config = unimatch_v2.get_config(f"{dataset},{chosen['split']},backbone=dinov2_vitb14")
    if version == "v1":
        _v1(config, dataset)
    else:
        set_method(config, "cw_bass", criterion="cross_entropy")
        config.batch = config.optim.published_batch = 4
        config.epochs = 60.0
    if rule != "default":
        config.method.threshold = rule
    config.method.calibrate = config.method.threshold in CALIBRATED
    return config


def _v1(config: ConfigDict, dataset: str) -> None:
    if dataset not in V1_LR:
        listed = ", ".join(V1_LR)
        raise ValueError(
            f"version 'v1' of configs/cw_bass.py is not published for {dataset!r}; choose one of {listed}"
        )
    set_method(config, "cw_bass_v1", criterion="cross_entropy")
    config.batch = config.optim.published_batch = 16
    config.epochs = V1_EPOCHS[dataset]
    config.data.crop = V1_CROP[dataset]
    config.model.backbone = "resnet50"
    config.model.backbone_weights = "resnet50.safetensors"
    config.model.decoder = "deeplab"
    config.optim.name = "sgd"
    config.optim.lr = V1_LR[dataset]
    config.optim.weight_decay = 1e-4
    config.optim.backbone_lr, config.optim.decoder_lr = 1.0, 10.0
    config.evaluation.mode = "original"
