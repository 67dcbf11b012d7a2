"""SemiVL on ADE20K, 150 classes.

python -m semivl_jax.main --config=configs/ade.py:1_128[,recipe=…]

Recipes: configs/arguments.py.
"""

from ml_collections import ConfigDict

from configs import arguments, recipes
from semivl_jax.config import default_config

SPLITS = {
    "1_128": 158,
    "1_64": 316,
    "1_32": 632,
    "1_16": 1263,
    "1_8": 2526,
}
"""Labelled images of the published lists."""


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a split, optionally followed by a recipe."""
    chosen = arguments.parse(
        argument, file="configs/ade.py", split=SPLITS, recipe=arguments.RECIPES
    )
    config = semivl(chosen["split"])
    recipes.apply(config, chosen["recipe"])
    return config


def semivl(split: str) -> ConfigDict:
    """SemiVL as published (docs/semivl.md 8), with an EMA teacher."""
    config = default_config()
    config.data.dataset = "ade20k"
    config.data.split = split
    config.model.weights = "clip_vit_b16"
    config.epochs = 40.0
    config.text.guidance = "name"
    config.optim.lr = 4e-4
    config.optim.backbone_lr = 0.001
    return config
