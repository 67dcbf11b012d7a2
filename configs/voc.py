"""SemiVL on Pascal VOC 2012, augmented training set.

python -m semivl_jax.main --config=configs/voc.py:92[,recipe=…]

Recipes: configs/arguments.py.
"""

from ml_collections import ConfigDict

from configs import arguments, recipes
from semivl_jax.config import default_config

SPLITS = {
    "92": 92,
    "183": 183,
    "366": 366,
    "732": 732,
    "1464": 1464,
}
"""Labelled images of the published lists."""


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a split, optionally followed by a recipe."""
    chosen = arguments.parse(
        argument, file="configs/voc.py", split=SPLITS, recipe=arguments.RECIPES
    )
    config = semivl(chosen["split"])
    recipes.apply(config, chosen["recipe"])
    return config


def semivl(split: str) -> ConfigDict:
    """SemiVL as published (docs/semivl.md 8), with an EMA teacher."""
    config = default_config()
    config.data.dataset = "voc"
    config.data.split = split
    config.model.weights = "clip_vit_b16"
    return config
