"""How a model is trained: the choices that are the same for every data set and model."""

from ml_collections import ConfigDict

from semivl_jax.config import set_method

ON_SEMIVL = {"cw_bass": "cw_bass_semivl", "semi_ovs": "semi_ovs_semivl"}
"""Recipe → its method where the configuration is SemiVL; elsewhere the recipe is the method."""


def apply(config: ConfigDict, recipe: str) -> None:
    """Changes a configuration to one of `arguments.RECIPES`."""
    method = config.method
    if recipe == "paper":
        method.teacher, method.cutmix_partner = "student", "same_image"
    elif recipe != "default":
        same = {"criterion": method.criterion, "dropout_passes": method.dropout_passes}
        if recipe == "cw_bass":  # weights single pixels
            same["confidence_mode"] = "pixelwise"
            if same["criterion"] == "focal_dice":
                same["criterion"] = "cross_entropy"
        guided = method.name == "semivl" and recipe in ON_SEMIVL
        set_method(config, ON_SEMIVL[recipe] if guided else recipe, **same)
