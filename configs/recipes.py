"""How a model is trained: the choices that are the same for every data set and model."""

from ml_collections import ConfigDict

from semivl_jax.config import set_method


def apply(config: ConfigDict, recipe: str, *, unlabelled: int) -> None:
    """Changes a configuration to one of `arguments.RECIPES`.

    `unlabelled` images are what an epoch passes over; labelled images alone train as many steps.
    """
    method = config.method
    if recipe == "paper":
        method.teacher, method.cutmix_partner = "student", "same_image"
    elif recipe != "default":
        same = {"criterion": method.criterion, "dropout_passes": method.dropout_passes}
        set_method(config, recipe, **same)
    if recipe == "supervised":
        config.epoch_images = unlabelled
