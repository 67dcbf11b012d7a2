"""Vision transformers of the library transformers with random weights, and timm's names for those."""

import re

import numpy as np
import pytest

_RENAMED = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"layernorm_before|\.norm1", ".norm1"),
    (r"layernorm_after|\.norm2", ".norm2"),
    (r"attention\.o_proj", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def libraries():
    """(torch, transformers), or the test is skipped. Names of weights are those of transformers 5."""
    return pytest.importorskip("torch"), pytest.importorskip("transformers", minversion="5.0")


def randomize(model, torch):
    """Draws every parameter, so that none has its initial value."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim else 1
        torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim < 2 else fan_in**-0.5)
    return model.eval()


def timm_state(model) -> dict[str, np.ndarray]:
    """The state dict under timm's names, with queries, keys and values in one tensor."""
    state, fused = {}, {}
    for name, tensor in model.state_dict().items():
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        name = name.replace("..", ".")
        match = re.fullmatch(r"(blocks\.\d+)\.attention\.([qkv])_proj\.(\w+)", name)
        if match:
            fused.setdefault(f"{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = tensor.numpy()
        else:
            state[name] = tensor.numpy()
    whole = {name: np.concatenate([parts[x] for x in "qkv"]) for name, parts in fused.items()}
    return {**state, **whole}
