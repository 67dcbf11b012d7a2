"""SemiVL on COCO with 232 labelled images: `coco.py:1_512` under a short name.

python -m semivl_jax.main --config=configs/coco_232.py
"""

from ml_collections import ConfigDict

from configs import coco


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is empty or `recipe=…`."""
    return coco.get_config(f"1_512,{argument}")
