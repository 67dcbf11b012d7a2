"""State dicts with the names and shapes of every published model, in full size."""

import json
import math

import numpy as np
import pytest

from semivl_jax import convert
from semivl_jax.weights import kinds
from semivl_jax.weights.checkpoints import Checkpoint
from tests.golden_files import OWN, golden_dir

KINDS = {
    "voc_unimatch_zegclip": "zegclip",
    "voc_unimatch_vit": "vit_baseline",
    "voc_unimatch_r101": "unimatch_deeplab",
}
DROPPED = (  # parameters that the published models have and never use, or not for segmentation
    "clip_encoder.",
    "backbone.m.head.",
    "decode_head.decoder_1.layers.#.self_attn.",
    "decode_head.decoder_1.layers.#.norm1.",
)


def models():
    path = golden_dir() / "published_models.json"
    path = path if path.is_file() else OWN / path.name
    return json.loads(path.read_text())


def state_of(facts, dtype=np.float16):
    """Arrays of the right shapes that take no memory."""
    return {
        tensor["name"]: np.broadcast_to(dtype(0.01), tensor["shape"]) for tensor in facts["tensors"]
    }


def is_dropped(name):
    parts = [("#" if part.isdigit() else part) for part in name.split(".")]
    return ".".join(parts).startswith(DROPPED)


@pytest.mark.golden
@pytest.mark.parametrize("name", models())
def test_every_published_model_converts_with_its_number_of_parameters(name):
    facts = models()[name]
    checkpoint = Checkpoint(source=name, state=state_of(facts))
    kind = kinds.recognise(checkpoint)
    assert kind.name == KINDS.get(name, "semivl")
    weights = kind.convert(checkpoint, kinds.Options())
    counts = convert.parameter_counts(weights)
    dropped = {
        tensor["name"]: math.prod(tensor["shape"])
        for tensor in facts["tensors"]
        if tensor["kind"] == "parameter" and is_dropped(tensor["name"])
    }
    guidance = sum(n for tensor, n in dropped.items() if tensor.startswith("clip_encoder."))
    assert guidance == facts["guidance_encoder"]
    unused = {
        part: sum(n for tensor, n in dropped.items() if tensor.startswith(prefix))
        for part, prefix in (("backbone", "backbone."), ("decoder", "decode_head."))
    }
    assert counts["total"] == facts["total"] - sum(unused.values())
    assert counts["backbone"] == facts["backbone"] - unused["backbone"]
    if facts["decoder"]:  # UniMatch's own parts are not counted there
        assert counts["decoder"] == facts["decoder"] - unused["decoder"]
    assert counts.get("conv_encoder", 0) == facts["conv_encoder"]
