"""SemiVL on Cityscapes with 100 labelled images: `cityscapes.py:1_30` under a short name.

python -m semivl_jax.main --config=configs/cityscapes_100.py
"""

from ml_collections import ConfigDict

from configs import cityscapes


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is empty or `recipe=…`."""
    return cityscapes.get_config(f"1_30,{argument}")
