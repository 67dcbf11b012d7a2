"""Files that torch wrote, as NumPy arrays. The only module of the project that needs torch.

In: files of `torch.save` (zip archives and the older pickles) and TorchScript archives. Out: what lies in
them as nested dicts, tensors as NumPy arrays (bfloat16 as float32). torch is the optional extra `torch` and
is imported when such a file is read, not before.

Nothing in a file is ever executed as Python: `torch.save` files are read with `weights_only=True`, where
beside tensors only NumPy numbers are allowed (published checkpoints keep their best score as one), and
TorchScript archives are not pickles of Python objects.
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
    """What `torch.save` wrote. ValueError where torch is missing, or the file is damaged or unsafe."""
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
    """Without the warnings about the age of formats, which are not the reader's fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _numbers() -> list[Any]:
    """What a pickled NumPy number is made of, under the names of NumPy 1 and 2."""
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
