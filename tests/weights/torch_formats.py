"""State dicts in the formats that torch writes; every function needs torch."""

import numpy as np
import pytest


def torch():
    return pytest.importorskip("torch")


def tensors(state: dict) -> dict:
    return {name: torch().from_numpy(np.array(array)) for name, array in state.items()}


def save(state: dict, path, **options) -> None:
    """A plain state dict; `_use_new_zipfile_serialization=False` gives the format before 2020."""
    torch().save(tensors(state), path, **options)


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
