"""Rows of the published ablation on Pascal VOC (docs/semivl.md 8).

    python -m semivl_jax.main --config=configs/voc_ablation.py:language_decoder,1464[,recipe=paper]

Published were the splits 92 and 1464, and the recipe `paper`. Each row trains as UniMatch does, with the
model changed.
"""

from ml_collections import ConfigDict

from configs import arguments, recipes, voc
from semivl_jax.config import set_method


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a row and a split, optionally followed by a recipe."""
    chosen = arguments.parse(
        argument,
        file="configs/voc_ablation.py",
        row=ROWS,
        split=voc.SPLITS,
        recipe=arguments.RECIPES,
    )
    config = voc.semivl(chosen["split"])
    ROWS[chosen["row"]](config)
    recipes.apply(config, chosen["recipe"])
    return config


def class_definitions(config: ConfigDict) -> None:
    """The whole method."""


def clip_guidance(config: ConfigDict) -> None:
    """Guidance by plain class names."""
    config.text.guidance = "name"


def language_decoder(config: ConfigDict) -> None:
    """No guidance."""
    set_method(config, "unimatch")


def spatial_finetuning(config: ConfigDict) -> None:
    """DeepLabV3+ head on the CLIP tower."""
    language_decoder(config)
    config.model.decoder = "deeplab"
    config.model.out_indices = (4, 12)


def clip_init(config: ConfigDict) -> None:
    """All of the tower is trained."""
    spatial_finetuning(config)
    config.model.finetune = "all"
    config.optim.backbone_lr = 0.001


def unimatch_r101(config: ConfigDict) -> None:
    """UniMatch's own model and optimiser: DeepLabV3+ on ResNet-101, SGD, crop 321."""
    config.data.crop = 321
    config.data.resize = "long_side"
    config.model.backbone = "resnet101"
    config.model.init = "random"
    config.model.finetune = "all"
    config.model.weights = ""
    config.model.backbone_weights = "resnet101.safetensors"
    config.model.decoder = "deeplab"
    set_method(config, "unimatch")
    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.weight_decay = 1e-4
    config.optim.backbone_lr = 1.0
    config.evaluation.mode = "original"
    config.evaluation.short_side = 0


def unimatch_zegclip(config: ConfigDict) -> None:
    """Frozen CLIP with trained prompts, ZegCLIP's decoder and criterion."""
    config.model.backbone = "prompted_clip_vit"
    config.model.out_indices = (12,)
    config.model.finetune = "prompts"
    config.model.decoder = "atm"
    set_method(config, "zegclip")
    config.optim.backbone_lr = 10.0


def unimatch_vit(config: ConfigDict) -> None:
    """DeepLabV3+ head on a ViT-B/16 with ImageNet weights."""
    config.model.backbone = "imagenet_vit"
    config.model.init = "random"
    config.model.out_indices = (4, 11)
    config.model.finetune = "all"
    config.model.weights = ""
    config.model.backbone_weights = "imagenet_vit_b16.safetensors"
    config.model.decoder = "deeplab"
    set_method(config, "unimatch", dropout_passes="all")
    config.optim.backbone_lr = 0.001


ROWS = {
    row.__name__: row
    for row in (
        unimatch_r101,
        unimatch_zegclip,
        unimatch_vit,
        clip_init,
        spatial_finetuning,
        language_decoder,
        clip_guidance,
        class_definitions,
    )
}
"""Row → what it changes of the whole method, in the published order."""
