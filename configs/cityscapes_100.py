"""SemiVL on Cityscapes with 100 labelled images: `cityscapes.py:1_30` under a short name.

python -m semivl_jax.main --config=configs/cityscapes_100.py
"""

from ml_collections import ConfigDict

from configs import arguments, cityscapes


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is empty or `recipe=…`."""
    chosen = arguments.parse(argument, file="configs/cityscapes_100.py", recipe=arguments.RECIPES)
    return cityscapes.get_config(f"1_30,recipe={chosen['recipe']}")
