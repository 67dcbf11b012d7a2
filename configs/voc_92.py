"""SemiVL on Pascal VOC with 92 labelled images: `voc.py:92` under a short name.

python -m semivl_jax.main --config=configs/voc_92.py
"""

from ml_collections import ConfigDict

from configs import voc


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is empty or `recipe=…`."""
    return voc.get_config(f"92,{argument}")
