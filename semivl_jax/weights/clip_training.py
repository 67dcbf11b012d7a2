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

import numpy as np

from semivl_jax.weights import files
from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.layout import ACTIVATIONS, Options
from semivl_jax.weights.rename import State


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


def heads_of_clip(checkpoint: Checkpoint, options: Options) -> tuple[State, Options]:
    """Attention heads as the CLIP was trained, unless the options have them."""
    # `finish_clip` asks for the activation, when everything else is known to fit.
    known = dataclasses.replace(options, activation=options.activation or "gelu")
    found = {
        option: getattr(options, option) or of_tower(checkpoint, tower, known).heads
        for option, tower in (("image_heads", "vision"), ("text_heads", "text"))
    }
    return checkpoint.state, dataclasses.replace(options, **found)


def finish_clip(weights: files.Weights, checkpoint: Checkpoint, options: Options) -> files.Weights:
    """Adds activations and epsilons to the sizes, removes a square grid, exponentiates the logit scale."""
    sizes = weights.sizes
    image, text = (of_tower(checkpoint, t, options) for t in ("vision", "text"))
    trained = [{"quick_gelu": tower.quick_gelu, "eps": tower.eps} for tower in (image, text)]
    image_sizes = {k: v for k, v in sizes["image"].items() if k != "grid" or v[0] != v[1]}
    image_sizes |= trained[0] if options.as_trained else {}
    as_openai = weights.kind == "openai_clip" and text.quick_gelu and text.eps == 1e-5
    text_sizes = sizes["text"] | ({} if as_openai else trained[1])
    _check_widths(checkpoint, image=image_sizes["out_dim"], text=text_sizes["out_dim"])
    activation = "QuickGELU" if image.quick_gelu else "GELU"
    scale = np.asarray(np.exp(np.float32(weights.tree["logit_scale"])))
    return dataclasses.replace(
        weights,
        sizes={"image": image_sizes, "text": text_sizes},
        tree={part: weights.tree[part] for part in ("image", "text")} | {"logit_scale": scale},
        notes={"trained_with": f"{activation}, LayerNorm epsilon {image.eps:g}"},
    )


def finish_siglip(
    weights: files.Weights, checkpoint: Checkpoint, options: Options
) -> files.Weights:
    """Adds the tokenizer."""
    sizes = weights.sizes
    _check_widths(checkpoint, image=sizes["img"]["width"], text=sizes["txt"]["out_dim"])
    tokenizer = options.tokenizer or checkpoint.tokenizer
    if tokenizer is None:
        return weights
    stored = {"tokenizer": np.frombuffer(tokenizer, np.uint8)}
    return dataclasses.replace(weights, tree=weights.tree | stored)


_SIGLIP_HEADS = {768: 12, 1024: 16, 1152: 16}  # by width, as published


def heads_of_siglip(checkpoint: Checkpoint, options: Options) -> tuple[State, Options]:
    """Attention heads as config.json says, unless the options have them; else as published."""
    patches = checkpoint.state.get("vision_model.embeddings.patch_embedding.weight")
    if patches is not None and np.ndim(patches) == 2:
        raise ValueError(
            f"{checkpoint.source} is a NaFlex SigLIP 2, for images of any aspect; convert one of fixed "
            "resolution, such as siglip2-base-patch16-512"
        )
    found = {}
    for option, part, table in (
        ("image_heads", "vision_config", "vision_model.embeddings.position_embedding.weight"),
        ("text_heads", "text_config", "text_model.embeddings.position_embedding.weight"),
    ):
        width = np.shape(checkpoint.state.get(table, np.zeros((1, 0))))[-1]
        settings = (checkpoint.config or {}).get(part)
        stated = settings.get("num_attention_heads") if isinstance(settings, dict) else None
        heads = getattr(options, option) or stated or _SIGLIP_HEADS.get(width)
        if heads is not None and (not isinstance(heads, int) or heads < 1):
            raise ValueError(
                f"{checkpoint.source}: config.json has {part}.num_attention_heads = {heads!r}, which is no "
                "number; fetch it again"
            )
        found[option] = heads
    return checkpoint.state, dataclasses.replace(options, **found)


def _check_widths(checkpoint: Checkpoint, *, image: int, text: int) -> None:
    if image != text:
        raise ValueError(
            f"{checkpoint.source}: images are embedded in {image} dimensions, texts in {text}; these are not "
            "the towers of one model"
        )
