"""Parameter trees in safetensors files.

In and out: nested dicts of arrays (any dtype NumPy has); in the file every array stands under its
"/"-joined path, next to a table of texts (`metadata`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from semivl_jax.types import PyTree
from semivl_jax.weights.tree import flatten, unflatten


def save_tree(
    path: str | os.PathLike[str], tree: Mapping[str, Any], metadata: dict[str, str]
) -> None:
    """Write the tree. The file appears complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not np.ascontiguousarray, which turns a scalar into an array of shape (1,).
    flat = {name: np.asarray(leaf, order="C") for name, leaf in flatten(tree).items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(flat, unfinished, metadata=metadata)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_tree(path: str | os.PathLike[str]) -> tuple[PyTree, dict[str, str]]:
    """(tree of NumPy arrays, metadata). ValueError where the file is missing or not readable."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; check the path of the weights")
    try:
        with safe_open(path, framework="np") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return unflatten(flat), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); fetch or write it again"
        ) from error


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The table of texts alone; empty where the file is not readable."""
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
