"""Published weight files as NumPy arrays under the published names.

In: a path to .safetensors, .npz, a file of torch (`weights.torch_files`), or a folder of the Hugging Face
layout. The file type is detected from the content, not from the suffix. Out: `Checkpoint`: arrays by name,
without the prefix "module." and containers such as "model" and "state_dict".

A file that cannot be read is a ValueError that names it.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from semivl_jax.weights import store, torch_files

# Entries of training checkpoints that hold the weights, in the order of preference.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "net")
_FOLDER = ("model.safetensors", "pytorch_model.bin")
_OPEN_CLIP_FOLDER = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Published weights.

    source    name for errors
    state     arrays by published name
    config    contents of Hugging Face's config.json; None: there is none
    open_clip  contents of open_clip_config.json; None: there is none
    tokenizer  contents of Hugging Face's tokenizer.json; None: there is none
    metadata  of a safetensors file
    """

    source: str
    state: dict[str, np.ndarray]
    config: dict[str, Any] | None = None
    open_clip: dict[str, Any] | None = None
    tokenizer: bytes | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def read(path: Path, *, entry: str = "") -> Checkpoint:
    """The weights in a file or folder; `entry` names the part of a training checkpoint that holds them.

    ValueError if there are none or they cannot be read.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path of the weights")
    state, metadata = _read_file(path, entry)
    state = {name: _storable(array) for name, array in _without_prefix(state).items()}
    tokenizer = path.with_name("tokenizer.json")
    of_folder = path.name in _FOLDER
    return Checkpoint(
        source=str(path),
        state=state,
        config=_read_config(path.with_name("config.json")) if of_folder else None,
        tokenizer=tokenizer.read_bytes() if of_folder and tokenizer.is_file() else None,
        open_clip=_read_config(path.with_name("open_clip_config.json")),
        metadata=metadata,
    )


def _read_folder(folder: Path) -> Checkpoint:
    names = (*_FOLDER, *_OPEN_CLIP_FOLDER)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{folder} holds none of {', '.join(names)}; name the file with the weights"
        )
    return read(found)


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object; fetch it again")
    return config


def _read_file(path: Path, entry: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with path.open("rb") as stream:
        start = stream.read(64)
    if start[8:9] == b"{":  # the bytes before are the length of the header of safetensors
        return store.load_flat(path)
    if start.startswith(b"PK"):
        return _read_archive(path, entry), {}
    if start.startswith(b"\x80"):  # a pickle
        return _unpacked(torch_files.read_saved(path), path, entry), {}
    if start.startswith(store.LFS_POINTER):
        raise ValueError(f"{path} {store.what_it_is(path)}")
    raise ValueError(
        f"{path} is of no known format: neither safetensors, npz nor a file of torch; if it should be "
        "one, it is damaged: fetch it again"
    )


def _read_archive(path: Path, entry: str) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(name).name for name in archive.namelist()]
            # Checked here because libraries can crash on wrong bytes.
            broken = archive.testzip()
    except Exception as error:  # damaged files raise many types
        raise store.damaged(path, error) from error
    if broken is not None:
        raise store.damaged(path, f"wrong checksum of {broken}")
    if "constants.pkl" in names:
        return _arrays(torch_files.read_script(path), path)
    if "data.pkl" in names:
        return _unpacked(torch_files.read_saved(path), path, entry)
    if names and all(name.endswith(".npy") for name in names):
        return _read_npz(path)
    raise ValueError(
        f"{path} is an archive, but neither of NumPy (.npz) nor of torch; unpack it and name the file "
        "with the weights"
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            state = {name: file[name] for name in file.files}
    except Exception as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects and not only arrays, and reading those could run any "
                "program; save the arrays alone"
            ) from error
        raise store.damaged(path, error) from error
    # NumPy writes bfloat16 as the type V2.
    return {
        name: array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
        for name, array in state.items()
    }


def _unpacked(content: Any, path: Path, entry: str) -> dict[str, np.ndarray]:
    """The state dict in the content of a torch file: the content itself, or a part of it."""
    if isinstance(content, Mapping):
        if entry and not isinstance(content.get(entry), Mapping):
            raise ValueError(
                f"{path} has no entry {entry!r} with weights; it has {', '.join(map(repr, content))[:200]}"
            )
        for name in (entry,) if entry else _CONTAINERS:
            inner = content.get(name)
            if isinstance(inner, Mapping) and any(map(_is_array, inner.values())):
                return _arrays(inner, path)
    return _arrays(content, path)


def _arrays(content: Any, path: Path) -> dict[str, np.ndarray]:
    if not isinstance(content, Mapping) or not any(map(_is_array, content.values())):
        raise ValueError(
            f"{path} holds no table of named weights; save the model's state_dict() and convert that"
        )
    others = [name for name, value in content.items() if not _is_array(value)]
    if others:
        raise ValueError(
            f"{path} holds {', '.join(map(repr, others[:5]))} beside its weights; save the model's "
            "state_dict() alone, or under the name 'model'"
        )
    return dict(content)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _storable(array: np.ndarray) -> np.ndarray:
    """float64 and bfloat16 as float32, other dtypes unchanged."""
    return array.astype(np.float32) if array.dtype in (np.float64, ml_dtypes.bfloat16) else array


def _without_prefix(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names without the prefix of torch's parallel training."""
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state
