"""ZegCLIP's names -> our trees.

In: torch state dicts of NumPy arrays under the names of the published baseline, complete or of a few
tensors only. Out: nested dicts in the names and layouts of `models.zegclip`. Names that nothing claims:
one ValueError with all of them.

The published decoder carries self-attention and a norm that its forward pass never calls, and a buffer of
its criterion: known and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.clip import vision_rules
from semivl_jax.weights.layout import Rule, attention_out, below, convert, heads_in, layer, norm

State = Mapping[str, np.ndarray]

BACKBONE, DECODER = "backbone.", "decode_head."


def import_zegclip(
    state: State,
    *,
    backbone_heads: int,
    decoder_heads: int,
    source: str = "the ZegCLIP weights",
) -> dict[str, PyTree]:
    """{"params"} of a `SegmentationModel` of `vit.PROMPTED_CLIP` and `MaskDecoder`."""
    rest = {name: state[name] for name in state if not name.startswith((BACKBONE, DECODER))}
    convert(rest, [], source=source)  # raises for every name outside the parts
    rules = {
        "backbone": (BACKBONE, backbone_rules(backbone_heads)),
        "decoder": (DECODER, decoder_rules(decoder_heads)),
    }
    parts = {
        name: convert(below(state, prefix), part, source=source)
        for name, (prefix, part) in rules.items()
    }
    return {"params": {name: part for name, part in parts.items() if part}}


def backbone_rules(num_heads: int) -> tuple[Rule, ...]:
    """How names and layouts of the prompted tower become ours."""
    return (
        *vision_rules(num_heads),
        Rule("prompt_embeddings", "prompt/embedding"),
        Rule("deep_prompt_embeddings", "prompt/deep_embedding"),
        *layer("prompt_proj", "prompt/projection"),
        *norm("prompt_norm", "prompt/norm"),
    )


def decoder_rules(num_heads: int) -> tuple[Rule, ...]:
    """How names and layouts of the mask decoder become ours."""
    old, new = r"decoder_1\.layers\.(\d+)", r"layer_\1"
    split = heads_in(num_heads)
    names = {"q": "query", "k": "key", "v": "value"}
    return (
        *(
            Rule(
                rf"{old}\.multihead_attn\.{letter}\.{kind}", f"{new}/attention/{name}/{leaf}", split
            )
            for letter, name in names.items()
            for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
        ),
        Rule(
            rf"{old}\.multihead_attn\.proj\.weight",
            f"{new}/attention/out/kernel",
            attention_out(num_heads),
        ),
        Rule(rf"{old}\.multihead_attn\.proj\.bias", f"{new}/attention/out/bias"),
        *layer(rf"{old}\.linear1", f"{new}/mlp_in"),
        *layer(rf"{old}\.linear2", f"{new}/mlp_out"),
        *norm(rf"{old}\.norm2", f"{new}/norm1"),
        *norm(rf"{old}\.norm3", f"{new}/norm2"),
        *layer("q_proj", "query_projection"),
        Rule(r"decoder_1\.layers\.\d+\.(self_attn\..*|norm1\.(weight|bias))", None),
        Rule(r"loss_decode\.criterion\.empty_weight", None),
    )
