"""State dicts in every file format; those of torch need torch."""

import numpy as np
import pytest
from safetensors.numpy import save_file

FORMATS = ("safetensors", "npz", "zip", "legacy", "script")


def write(state: dict, path, file_format: str) -> None:
    if file_format == "safetensors":
        save_file(state, path)
    elif file_format == "npz":
        with path.open("wb") as stream:
            np.savez(stream, **state)
    elif file_format == "script":
        save_script(state, path)
    else:  # "legacy" is the format before 2020
        new = file_format == "zip"
        torch().save(tensors(state), path, _use_new_zipfile_serialization=new)


def torch():
    return pytest.importorskip("torch")


def tensors(state: dict) -> dict:
    return {name: torch().from_numpy(np.array(array)) for name, array in state.items()}


def save_script(state: dict, path) -> None:
    """A TorchScript archive with these parameters, as OpenAI publishes CLIP."""
    root = torch().nn.Module()
    for name, tensor in tensors(state).items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch().nn.Module())
            module = module._modules[parent]
        if tensor.is_floating_point():
            module.register_parameter(leaf, torch().nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    torch().jit.save(torch().jit.script(root), str(path))
