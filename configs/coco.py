"""SemiVL on COCO 2017, 81 classes with background.

python -m semivl_jax.main --config=configs/coco.py:1_512[,recipe=…]

Recipes: configs/arguments.py.
"""

from ml_collections import ConfigDict

from configs import arguments, recipes
from semivl_jax.config import default_config

SPLITS = {
    "1_512": 232,
    "1_256": 463,
    "1_128": 925,
    "1_64": 1849,
    "1_32": 3697,
}
"""Labelled images of the published lists."""


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a split, optionally followed by a recipe."""
    chosen = arguments.parse(
        argument, file="configs/coco.py", split=SPLITS, recipe=arguments.RECIPES
    )
    config = semivl(chosen["split"])
    recipes.apply(config, chosen["recipe"])
    return config


def semivl(split: str) -> ConfigDict:
    """SemiVL as published (docs/semivl.md 8), with an EMA teacher."""
    config = default_config()
    config.data.dataset = "coco"
    config.data.split = split
    config.model.weights = "clip_vit_b16"
    config.epochs = 10.0
    config.data.resize = "long_side"
    config.text.guidance = "name"
    config.optim.lr = 4e-4
    config.optim.backbone_lr = 0.001
    config.evaluation.short_side = 0
    return config
