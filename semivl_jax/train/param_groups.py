"""Rules over parameter paths: which leaves are trained, and at which learning rate.

A path is the "/"-joined name of a leaf in the segmenter's parameter tree, such as
`backbone/Transformer/encoderblock_3/MlpBlock_0/Dense_0/kernel`. Groups are tried in order and the first
whose pattern matches the whole path owns the leaf; a leaf that no group owns is an error, so a renamed
module cannot silently drop out of training.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

from semivl_jax.types import PyTree
from semivl_jax.weights.tree import flatten, unflatten

Finetune = Literal["spatial", "all", "prompts", "none"]

# Attention and position table: the leaves of the image tower that mix positions.
_SPATIAL = r"(pos_embedding|(.*/)?Transformer/.*/MultiHeadDotProductAttention_0/.*)"


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves with a common multiplier of the learning rate; 0 freezes them: they are not differentiated."""

    name: str
    pattern: str
    lr: float

    @property
    def frozen(self) -> bool:
        """Whether the group's leaves stay as they are."""
        return self.lr == 0.0


def published_groups(
    *,
    finetune: Finetune,
    backbone_lr: float,
    conv_encoder_lr: float,
    decoder_lr: float,
    frozen_clip: bool = False,
) -> tuple[Group, ...]:
    """The groups of docs/semivl.md 1 (spatial fine-tuning), 5 (learning rates) and 8 (prompts).

    With `frozen_clip` the CLIP beside another tower stays as it is. Queries in place of texts have the base
    rate, as in Co2S.
    """
    backbone = {
        "spatial": (
            Group("backbone", f"backbone/{_SPATIAL}", backbone_lr),
            Group("backbone (frozen)", "backbone/.*", 0.0),
        ),
        "all": (Group("backbone", "backbone/.*", backbone_lr),),
        "prompts": (
            Group("backbone", "backbone/prompt/.*", backbone_lr),
            Group("backbone (frozen)", "backbone/.*", 0.0),
        ),
        "none": (Group("backbone (frozen)", "backbone/.*", 0.0),),
    }
    frozen = (Group("clip (frozen)", "backbone/clip/.*", 0.0),) if frozen_clip else ()
    return (
        *frozen,
        *backbone[finetune],
        Group("conv_encoder", "conv_encoder/.*", conv_encoder_lr),
        Group("queries", r"decoder/(.*/)?queries", 1.0),
        Group("decoder", "decoder/.*", decoder_lr),
        Group("method", "method/.*", decoder_lr),
    )


def assign(params: PyTree, groups: Sequence[Group]) -> dict[str, Group]:
    """Owner of every leaf by path.

    Raises:
      ValueError: a leaf matches no group (the leaves are listed).
    """
    owners = {
        path: next((group for group in groups if re.fullmatch(group.pattern, path)), None)
        for path in flatten(params)
    }
    uncovered = [path for path, owner in owners.items() if owner is None]
    if uncovered:
        raise ValueError(
            f"no parameter group covers {', '.join(uncovered[:5])}"
            f"{' …' if len(uncovered) > 5 else ''}; add a group whose pattern matches the whole path"
        )
    return owners


def partition(params: PyTree, groups: Sequence[Group]) -> tuple[PyTree, PyTree]:
    """Splits a parameter tree into (trained, frozen) trees; `merge` is the inverse."""
    owners = assign(params, groups)
    flat = flatten(params)
    trained = {path: leaf for path, leaf in flat.items() if not owners[path].frozen}
    frozen = {path: leaf for path, leaf in flat.items() if owners[path].frozen}
    return unflatten(trained), unflatten(frozen)


def merge(trained: PyTree, frozen: PyTree) -> PyTree:
    """The inverse of `partition`."""
    return unflatten({**flatten(trained), **flatten(frozen)})


def parameter_table(params: PyTree, groups: Sequence[Group], *, lr: float, decay: float) -> str:
    """A table of leaves, parameters, learning rate and decay per group."""
    owners = assign(params, groups)
    flat = flatten(params)
    rows = [("group", "leaves", "parameters", "learning rate", "weight decay")]
    for group in groups:
        sizes = [math.prod(flat[path].shape) for path, owner in owners.items() if owner is group]
        if not sizes:
            continue
        rates = ("frozen", "-") if group.frozen else (f"{lr * group.lr:g}", f"{decay:g}")
        rows.append((group.name, f"{len(sizes)}", f"{sum(sizes):,}", *rates))
    trained = sum(math.prod(flat[p].shape) for p, owner in owners.items() if not owner.frozen)
    total = sum(math.prod(leaf.shape) for leaf in flat.values())
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, f"trained {trained:,} of {total:,} parameters"])
