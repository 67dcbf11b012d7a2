"""SemiVL on Cityscapes, with a convolutional encoder for fine detail.

python -m semivl_jax.main --config=configs/cityscapes.py:1_30[,recipe=…]

Recipes: configs/arguments.py.
"""

from ml_collections import ConfigDict

from configs import arguments, recipes
from semivl_jax.config import default_config

SPLITS = {
    "1_30": 100,
    "1_16": 186,
    "1_8": 372,
    "1_4": 744,
    "1_2": 1488,
}
"""Labelled images of the published lists."""


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a split, optionally followed by a recipe."""
    chosen = arguments.parse(
        argument, file="configs/cityscapes.py", split=SPLITS, recipe=arguments.RECIPES
    )
    config = semivl(chosen["split"])
    recipes.apply(config, chosen["recipe"])
    return config


def semivl(split: str) -> ConfigDict:
    """SemiVL as published (docs/semivl.md 8), with an EMA teacher."""
    config = default_config()
    config.data.dataset = "cityscapes"
    config.data.split = split
    config.model.weights = "clip_vit_b16"
    config.steps = 83_760
    config.data.crop = 801
    config.data.resize = "long_side"
    config.model.out_indices = (4, 12)
    config.model.conv_encoder = "resnet101_v1c"
    config.model.conv_encoder_weights = "resnet101_v1c.safetensors"  # of ImageNet (docs/methods.md)
    config.model.renormalize = True
    config.model.guidance_grid = 32  # as published, whatever the crop
    config.vlg_decoder.skip_channels = (32, 32)
    config.text.decoder = "concept_average"
    config.method.confidence_mode = "pixelavg"
    config.optim.lr = 5e-5
    config.optim.backbone_lr = 0.1
    config.optim.conv_encoder_lr = 0.1
    config.evaluation.mode = "sliding_window"
    config.evaluation.short_side = 0
    config.evaluation.every_epochs = 10
    return config
