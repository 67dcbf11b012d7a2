"""SemiVL on COCO with 232 labelled images: `coco.py:1_512` under a short name.

python -m semivl_jax.main --config=configs/coco_232.py
"""

from ml_collections import ConfigDict

from configs import arguments, coco


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is empty or `recipe=…`."""
    chosen = arguments.parse(argument, file="configs/coco_232.py", recipe=arguments.RECIPES)
    return coco.get_config(f"1_512,recipe={chosen['recipe']}")
