"""Trees of named arrays in safetensors files.

In and out: nested dicts of arrays (dtypes of NumPy and bfloat16). In the file arrays are named by their
"/"-joined paths; `metadata` is a dict of strings.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from semivl_jax import utils
from semivl_jax.types import PyTree
from semivl_jax.weights.tree import flatten, unflatten

LFS_POINTER = b"version https://git-lfs"
"""How a pointer begins that Git leaves in the place of a large file."""


def save_tree(
    path: str | os.PathLike[str], tree: Mapping[str, Any], metadata: dict[str, str]
) -> None:
    """Writes the tree atomically."""
    # Not np.ascontiguousarray, which makes a scalar an array of shape (1,).
    flat = {name: np.asarray(leaf, order="C") for name, leaf in flatten(tree).items()}
    with utils.atomic_write(Path(path)) as temporary:
        temporary.touch()  # with the usual permissions; save_file would set private ones
        mode = temporary.stat().st_mode
        save_file(flat, temporary, metadata=metadata)
        temporary.chmod(mode)


def load_tree(path: str | os.PathLike[str]) -> tuple[PyTree, dict[str, str]]:
    """(tree of NumPy arrays, metadata). ValueError if the file is missing or not readable."""
    flat, metadata = load_flat(path)
    try:
        return unflatten(flat), metadata
    except ValueError as error:
        raise ValueError(f"{path} holds no tree of parameters: {error}") from error


def load_flat(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by their names in the file, metadata); ValueError as `load_tree`."""
    foreign = what_it_is(Path(path))
    if foreign:
        raise ValueError(f"{path} {foreign}")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; check the path of the weights")
    try:
        with safe_open(path, framework="np") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return flat, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); fetch or write it again"
        ) from error
    except (TypeError, AttributeError) as error:  # a dtype that NumPy cannot hold, such as float8
        raise ValueError(
            f"{path} has arrays of a type that cannot be read ({error}); use a copy in float32, float16 "
            "or bfloat16"
        ) from error


def what_it_is(path: Path) -> str:
    """What a path is that is no safetensors file, and what to do with it; empty if it may be one."""
    convert = f"convert it: python -m semivl_jax.convert {path} --out FILE.safetensors"
    if path.is_dir():
        return f"is a folder; name the file with the weights, or {convert}"
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        start = stream.read(64)
    if start[8:9] == b"{":  # safetensors; the bytes before are the length of its header
        return ""
    if start.startswith(LFS_POINTER):
        return "is a pointer of Git LFS and not the file itself; run git lfs pull, or download it"
    if start.startswith(b"PK"):
        return f"is {_archive(path)}; {convert}"
    if start.startswith(b"\x80"):
        return f"is a file of torch (a pickle); {convert}"
    if start.lstrip()[:1] == b"<":
        return "is a web page and not the file itself; download the file that the page offers"
    return ""


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(name).name for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return "an archive that is damaged or cut off"
    if "constants.pkl" in names:
        return "a TorchScript archive, such as OpenAI's"
    if "data.pkl" in names:
        return "a file of torch"
    return "an archive of NumPy (.npz)" if all(n.endswith(".npy") for n in names) else "an archive"


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata alone; empty if the file is not readable."""
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def damaged(path: str | os.PathLike[str], reason: object) -> ValueError:
    """The error for a file that a library cannot read; `reason` is its exception, or a string."""
    text = next(iter(str(reason).splitlines()), "") or type(reason).__name__
    return ValueError(f"{path} cannot be read ({text}); it is damaged or cut off, fetch it again")
