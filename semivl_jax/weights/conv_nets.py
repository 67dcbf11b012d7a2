"""Rules for convolutional networks with batch norm, as torch's state dicts name their parts.

For modules of `models.layers` and `models.resnet`: paths begin with "params" or "batch_stats", so that one
conversion gives both collections. `conv_norm` alone knows no statistics and adds no such beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.layout import Rule, conv, convert, layer, norm


def conv_norm(conv_name: str, norm_name: str, path: str) -> tuple[Rule, ...]:
    """Rules for a convolution and the affine part of its norm -> `ConvNorm` at `path`."""
    return (*layer(conv_name, f"{path}/conv", conv), *norm(norm_name, f"{path}/norm"))


def conv_batch_norm(conv_name: str, norm_name: str, path: str) -> tuple[Rule, ...]:
    """Rules for a convolution and its batch norm with running statistics -> `ConvNorm` at `path`."""
    return (
        *conv_norm(conv_name, norm_name, f"params/{path}"),
        Rule(rf"{norm_name}\.running_mean", f"batch_stats/{path}/norm/mean"),
        Rule(rf"{norm_name}\.running_var", f"batch_stats/{path}/norm/var"),
        Rule(rf"{norm_name}\.num_batches_tracked", None),
    )


def residual_block(pattern: str, path: str) -> tuple[Rule, ...]:
    """Rules for a bottleneck block of torchvision's ResNet -> `Bottleneck` at `path`."""
    return (
        *(
            rule
            for i in (1, 2, 3)
            for rule in conv_batch_norm(
                rf"{pattern}\.conv{i}", rf"{pattern}\.bn{i}", f"{path}/conv{i}"
            )
        ),
        *conv_batch_norm(
            rf"{pattern}\.downsample\.0", rf"{pattern}\.downsample\.1", f"{path}/shortcut"
        ),
    )


def pyramid(pattern: str, path: str) -> tuple[Rule, ...]:
    """Rules for UniMatch's ASPP module -> `ASPP` with batch norm at `path`."""
    return (
        *conv_batch_norm(rf"{pattern}\.b(\d+)\.0", rf"{pattern}\.b(\d+)\.1", rf"{path}/branch_\1"),
        *conv_batch_norm(
            rf"{pattern}\.b\d+\.gap\.1", rf"{pattern}\.b\d+\.gap\.2", f"{path}/pooled"
        ),
        *conv_batch_norm(rf"{pattern}\.project\.0", rf"{pattern}\.project\.1", f"{path}/project"),
    )


def convert_with_statistics(
    state: Mapping[str, np.ndarray], rules: Iterable[Rule], *, source: str
) -> tuple[PyTree, PyTree]:
    """(parameters, batch statistics), each empty where the state dict has none of its kind."""
    tree = {"params": {}, "batch_stats": {}} | convert(state, rules, source=source)
    return tree["params"], tree["batch_stats"]
