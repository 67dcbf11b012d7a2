"""SemiVL on ADE20K with 158 labelled images: `ade.py:1_128` under a short name.

python -m semivl_jax.main --config=configs/ade_158.py
"""

from ml_collections import ConfigDict

from configs import ade, arguments


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is empty or `recipe=…`."""
    chosen = arguments.parse(argument, file="configs/ade_158.py", recipe=arguments.RECIPES)
    return ade.get_config(f"1_128,recipe={chosen['recipe']}")
