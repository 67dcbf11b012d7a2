"""DINOv2's and UniMatch V2's names -> `vit.DINOV2` and `DPTHead`.

In: torch state dicts of NumPy arrays under the published names, complete or of a few tensors only. Out:
nested dicts in the names and layouts of `models`. Names that nothing claims: one ValueError with all of
them. Known and dropped: the mask token of DINOv2's own training, and the unit of the coarsest fusion block
that would take a finer map.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.layout import Rule, below, conv, convert, layer, upsample
from semivl_jax.weights.timm_vit import vit_rules

State = Mapping[str, np.ndarray]

BACKBONE, DECODER = "backbone.", "head."


def import_dinov2(state: State, *, num_heads: int, source: str = "the DINOv2 weights") -> PyTree:
    """Parameters of `vit.DINOV2`; the position table stays as it is, the tower resizes it."""
    return convert(state, encoder_rules(num_heads), source=source)


def import_unimatch_v2(
    state: State, *, num_heads: int, source: str = "the UniMatch V2 weights"
) -> dict[str, PyTree]:
    """{"params"} of a `SegmentationModel` of `vit.DINOV2` and `DPTHead`."""
    rest = {name: state[name] for name in state if not name.startswith((BACKBONE, DECODER))}
    convert(rest, [], source=source)  # raises for every name outside the parts
    parts = {
        "backbone": import_dinov2(below(state, BACKBONE), num_heads=num_heads, source=source),
        "decoder": convert(below(state, DECODER), DPT_RULES, source=source),
    }
    return {"params": {name: part for name, part in parts.items() if part}}


def encoder_rules(num_heads: int) -> tuple[Rule, ...]:
    """How DINOv2's names and layouts become ours."""
    block = r"Transformer/encoderblock_\1"
    return (
        *vit_rules(num_heads),
        Rule(r"blocks\.(\d+)\.ls1\.gamma", f"{block}/LayerScale_0"),
        Rule(r"blocks\.(\d+)\.ls2\.gamma", f"{block}/LayerScale_1"),
        Rule("mask_token", None),
    )


def _fusion_rules(number: int) -> tuple[Rule, ...]:
    """Their blocks count from 1, ours from 0, both from the finest."""
    old, new = rf"scratch\.refinenet{number}", f"fusion_{number - 1}"
    return (
        *layer(rf"{old}\.out_conv", f"{new}/out", conv),
        *layer(rf"{old}\.resConfUnit1\.conv([12])", rf"{new}/finer/conv\1", conv),
        *layer(rf"{old}\.resConfUnit2\.conv([12])", rf"{new}/fused/conv\1", conv),
    )


DPT_RULES = (
    Rule(r"scratch\.refinenet4\.resConfUnit1\..*", None),
    *layer(r"projects\.(\d)", r"tap_\1", conv),
    *layer(r"resize_layers\.([01])", r"scale_\1", upsample),
    *layer(r"resize_layers\.3", "scale_3", conv),
    *(Rule(rf"scratch\.layer{i}_rn\.weight", f"level_{i - 1}/kernel", conv) for i in (1, 2, 3, 4)),
    *(rule for i in (1, 2, 3, 4) for rule in _fusion_rules(i)),
    *layer(r"scratch\.output_conv\.0", "head", conv),
    *layer(r"scratch\.output_conv\.2", "classifier", conv),
)
