"""SemiVL on ADE20K with 158 labelled images: `ade.py:1_128` under a short name.

python -m semivl_jax.main --config=configs/ade_158.py
"""

from ml_collections import ConfigDict

from configs import ade


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is empty or `recipe=…`."""
    return ade.get_config(f"1_128,{argument}")
