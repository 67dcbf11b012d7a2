"""Trees of named arrays in safetensors files.

In and out: nested dicts of arrays (dtypes of NumPy and bfloat16). In the file arrays are named by their
"/"-joined paths; `metadata` is a dict of strings.
"""

from __future__ import annotations

import os
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
