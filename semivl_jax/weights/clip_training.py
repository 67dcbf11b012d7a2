"""What the weights of a CLIP do not say about it: activation, LayerNorm epsilon and attention heads.

In: a `foreign_files.Checkpoint`. Out: `Training` of a tower. The sources, by precedence:

    --activation            for both towers
    config.json             of Hugging Face, in the folder of the weights
    open_clip_config.json   of open_clip, beside the weights
    OpenAI's own archives   known by their entry input_resolution: QuickGELU

Weights that none of them describes are refused: OpenAI's CLIP was trained with QuickGELU, most of open_clip's
with GELU, and their tensors have the same names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.layout import ACTIVATIONS, Options


@dataclasses.dataclass(frozen=True)
class Training:
    """Of one tower; `heads` None: 64 channels each."""

    quick_gelu: bool
    eps: float
    heads: int | None


def of_tower(checkpoint: Checkpoint, tower: str, options: Options) -> Training:
    """How the tower "vision" or "text" was trained.

    Raises:
      ValueError: an unusable configuration file, or nothing that tells the activation.
    """
    if checkpoint.config is not None:
        found = _of_hugging_face(checkpoint, f"{tower}_config")
    elif checkpoint.open_clip is not None:
        found = _of_open_clip(checkpoint, f"{tower}_cfg")
    elif options.activation or "input_resolution" in checkpoint.state:
        found = Training(True, 1e-5, None)
    else:
        raise ValueError(
            f"{checkpoint.source} does not say which activation it was trained with; OpenAI's CLIP has "
            "QuickGELU, most weights of open_clip have GELU: give --activation=quick_gelu or "
            "--activation=gelu to python -m semivl_jax.convert, or put open_clip_config.json beside it"
        )
    if options.activation:
        return dataclasses.replace(found, quick_gelu=options.activation == "quick_gelu")
    return found


def _of_hugging_face(checkpoint: Checkpoint, part: str) -> Training:
    settings = _part(checkpoint.source, "config.json", checkpoint.config, part)
    defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": None}
    settings = defaults | dict(settings)
    act, eps, heads = (settings[name] for name in defaults)
    if act not in ACTIVATIONS:
        raise ValueError(
            f"{checkpoint.source}: config.json has {part}.hidden_act = {act!r}, which the towers do not "
            f"support; they support {' and '.join(ACTIVATIONS)}"
        )
    if not isinstance(eps, float) or not (heads is None or isinstance(heads, int)):
        raise ValueError(
            f"{checkpoint.source}: config.json has {part}.layer_norm_eps = {eps!r} and num_attention_heads "
            f"= {heads!r}, which are no numbers; fetch it again"
        )
    return Training(act == "quick_gelu", eps, heads)


def _of_open_clip(checkpoint: Checkpoint, part: str) -> Training:
    name = "open_clip_config.json"
    model = _part(checkpoint.source, name, checkpoint.open_clip, "model_cfg")
    tower = _part(checkpoint.source, name, model, part)
    try:
        heads = tower.get("heads")
        if part == "vision_cfg" and "head_width" in tower:
            heads = tower["width"] // tower["head_width"]
        eps = float(tower.get("norm_kwargs", {}).get("eps", 1e-5))
        return Training(bool(model.get("quick_gelu", False)), eps, heads and int(heads))
    except (TypeError, ValueError, KeyError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(
            f"{checkpoint.source}: {name} has unusable settings under {part} ({error!r}); fetch it again"
        ) from error


def _part(source: str, file: str, settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = settings.get(part, {})
    if not isinstance(found, Mapping):
        raise ValueError(f"{source}: {file} has no settings under {part}; fetch it again")
    return found
