"""How a model is trained: the choices that are the same for every data set and model."""

from ml_collections import ConfigDict


def apply(config: ConfigDict, recipe: str, *, unlabelled: int) -> None:
    """Changes a configuration to one of `arguments.RECIPES`.

    `unlabelled` images are what an epoch passes over; labelled images alone train as many steps.
    """
    method = config.method
    if recipe == "paper":
        method.teacher, method.partner = "student", "same_image"
    elif recipe == "fixmatch":
        method.strong_views, method.perturbation, method.guidance = 1, "none", False
    elif recipe == "supervised":
        method.semi_supervised, method.guidance = False, False
        config.epoch_images = unlabelled
