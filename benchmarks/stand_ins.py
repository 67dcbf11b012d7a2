"""What the benchmarks of the step use of three packages, for machines that lack them.

`install()` puts a small stand-in into `sys.modules` for each of jaxtyping, ml_collections and safetensors
that cannot be imported. So the step runs where there is only jax, flax, optax and what they bring;
annotations of shapes then say nothing, and weights cannot be read from files.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax


def install() -> list[str]:
    """Names of the modules that got a stand-in."""
    contents = {
        "jaxtyping": {"Array": jax.Array, "__getattr__": lambda _: _Annotation},
        "ml_collections": {"ConfigDict": ConfigDict},
        "safetensors": {"SafetensorError": OSError, "safe_open": None},
        "safetensors.numpy": {"save_file": None},
    }
    missing = [name for name in contents if not _importable(name)]
    for name in missing:
        module = types.ModuleType(name)
        vars(module).update(contents[name])
        sys.modules[name] = module
    return missing


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


class _Annotation:
    def __class_getitem__(cls, _: Any) -> Any:
        return Any


class ConfigDict(Mapping):
    """Nested fields by attribute and by key."""

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_fields", dict(fields or {}))

    def __getitem__(self, key: str) -> Any:
        return self._fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in self._fields:
            raise AttributeError(key)
        return self._fields[key]

    def __setattr__(self, key: str, value: Any) -> None:
        self._fields[key] = value

    def update_from_flattened_dict(self, flat: Mapping[str, Any]) -> None:
        """Sets fields by their dotted names; an unknown one is a KeyError."""
        for path, value in flat.items():
            *branches, name = path.split(".")
            node = self
            for branch in branches:
                node = node[branch]
            if name not in node:
                raise KeyError(path)
            setattr(node, name, value)
