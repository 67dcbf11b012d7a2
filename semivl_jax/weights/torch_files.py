"""Files that torch wrote, as NumPy arrays. The only module of the project that needs torch.

In: files of `torch.save` (zip archives and the older pickles) and TorchScript archives. Out: their contents
as nested dicts, tensors as NumPy arrays (bfloat16 as float32). torch is the optional extra `torch`, imported
only when such a file is read.

No Python code in a file is executed: `torch.save` files are read with `weights_only=True`, which allows
beside tensors only NumPy numbers (the best score in published checkpoints); TorchScript archives hold no
pickles of Python objects.
"""

from __future__ import annotations

import codecs
import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from semivl_jax.weights.store import damaged

INSTALL = "pip install 'semivl_jax[torch]'"


def read_saved(path: Path) -> Any:
    """Contents of a `torch.save` file. ValueError if torch is missing, or the file is damaged or unsafe."""
    torch = _torch(path)
    try:
        with _quiet(), torch.serialization.safe_globals(_numbers()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt files raise nearly everything
        if "weights only load failed" in str(error).lower() and "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds Python objects and not only weights, and reading those could run any "
                "program; load it where you trust it and save the model's state_dict() alone"
            ) from error
        raise damaged(path, error) from error
    return _to_numpy(content, torch)


def read_script(path: Path) -> dict[str, np.ndarray]:
    """Parameters and buffers of a TorchScript archive; ValueError as `read_saved`."""
    torch = _torch(path)
    try:
        with _quiet():
            content = dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except Exception as error:
        raise damaged(path, error) from error
    return _to_numpy(content, torch)


def _torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} was written by torch, and torch is not installed; {INSTALL}, or give the weights as "
            ".safetensors"
        ) from error
    return torch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignores warnings about old formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _numbers() -> list[Any]:
    """The globals of a pickled NumPy number, under the names of NumPy 1 and 2."""
    scalar = np._core.multiarray.scalar
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    encode = (codecs.encode, "_codecs.encode")  # protocol 2 writes bytes as text
    return [*((scalar, name) for name in names), np.dtype, *kinds, encode]


def _to_numpy(content: Any, torch: ModuleType) -> Any:
    if isinstance(content, Mapping):
        return {str(name): _to_numpy(value, torch) for name, value in content.items()}
    if isinstance(content, torch.Tensor):
        tensor = content.detach()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return content
