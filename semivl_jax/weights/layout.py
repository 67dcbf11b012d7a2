"""Torch's tensor layouts -> Flax's, and the table-driven renaming that every importer uses.

In: state dicts of NumPy arrays, laid out as torch has them (Linear (out, in); Conv (out, in, kh,
kw); fused attention projections stacked q, k, v on axis 0). Out: nested dicts as Linen's Dense, Conv,
LayerNorm and MultiHeadDotProductAttention name and shape their parameters. Every tensor is converted
by itself, so a state dict of a few tensors (say, gradients) converts as well as a complete one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.tree import listed, unflatten

Layout = Callable[[np.ndarray], np.ndarray | dict[str, np.ndarray]]


def same(array: np.ndarray) -> np.ndarray:
    """Biases, scales, running statistics: unchanged."""
    return array


def linear(weight: np.ndarray) -> np.ndarray:
    """Linear (out, in) -> Dense kernel (in, out)."""
    return np.ascontiguousarray(weight.T)


def conv(weight: np.ndarray) -> np.ndarray:
    """Conv2d (out, in, kh, kw) -> Conv kernel (kh, kw, in, out)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def upsample(weight: np.ndarray) -> np.ndarray:
    """ConvTranspose2d (in, out, f, f) with stride f -> Upsample kernel (f, f, in, out)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 0, 1))


def conv_1x1_as_linear(weight: np.ndarray) -> np.ndarray:
    """Conv2d (out, in, 1, 1) that acts on single pixels -> Dense kernel (in, out)."""
    return linear(weight[:, :, 0, 0])


def attention_in(num_heads: int) -> Layout:
    """Fused q, k, v projection -> {"query", "key", "value"}.

    Weight (3c, c) -> kernels (c, heads, c / heads); bias (3c,) -> biases (heads, c / heads).
    """

    one = heads_in(num_heads)
    return lambda array: {
        name: one(part)
        for name, part in zip(("query", "key", "value"), np.split(array, 3), strict=True)
    }


def heads_in(num_heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """One of the projections into heads.

    Weight (c, d) -> kernel (d, heads, c / heads); bias (c,) -> bias (heads, c / heads).
    """

    def split(array: np.ndarray) -> np.ndarray:
        heads = array.reshape(num_heads, -1, *array.shape[1:])
        return heads if array.ndim == 1 else np.ascontiguousarray(np.moveaxis(heads, -1, 0))

    return split


def attention_out(num_heads: int) -> Layout:
    """Output projection (c, c) -> kernel (heads, c / heads, c)."""
    return lambda weight: np.ascontiguousarray(weight.T).reshape(num_heads, -1, weight.shape[0])


@dataclass(frozen=True)
class Rule:
    r"""Which tensors, where they go, how they are laid out.

    `pattern` must match the whole name. `path` may use \1, \2 … for its groups and is None where
    the tensor is known and not needed. Where the layout gives several arrays, "*" in the path
    stands for their names.
    """

    pattern: str
    path: str | None
    layout: Layout = same


def norm(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Rules for weight and bias of a LayerNorm or GroupNorm (or the affine part of a BatchNorm)."""
    return (
        Rule(rf"{pattern}\.weight", rf"{path}/scale"),
        Rule(rf"{pattern}\.bias", rf"{path}/bias"),
    )


def layer(pattern: str, path: str, layout: Layout = linear) -> tuple[Rule, Rule]:
    """Rules for weight and bias of a linear or convolutional layer."""
    return (
        Rule(rf"{pattern}\.weight", rf"{path}/kernel", layout),
        Rule(rf"{pattern}\.bias", rf"{path}/bias"),
    )


def attention(pattern: str, path: str, *, num_heads: int) -> tuple[Rule, ...]:
    """Rules for torch's MultiheadAttention -> Linen's MultiHeadDotProductAttention."""
    split = attention_in(num_heads)
    return (
        Rule(rf"{pattern}\.in_proj_weight", rf"{path}/*/kernel", split),
        Rule(rf"{pattern}\.in_proj_bias", rf"{path}/*/bias", split),
        Rule(rf"{pattern}\.out_proj\.weight", rf"{path}/out/kernel", attention_out(num_heads)),
        Rule(rf"{pattern}\.out_proj\.bias", rf"{path}/out/bias"),
    )


def below(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with `prefix`, their names without it."""
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }


def convert(state: Mapping[str, np.ndarray], rules: Iterable[Rule], *, source: str) -> PyTree:
    """State dict -> nested dict by the first rule that matches each name.

    Names that no rule knows: one ValueError that lists them, `source` saying where they stood.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    flat: dict[str, np.ndarray] = {}
    unknown = []
    for name, array in state.items():
        matches = ((pattern.fullmatch(name), rule) for pattern, rule in compiled)
        found = next(((match, rule) for match, rule in matches if match), None)
        if found is None:
            unknown.append(name)
        elif found[1].path is not None:
            match, rule = found
            path, arrays = match.expand(rule.path), rule.layout(np.asarray(array))
            named = arrays if isinstance(arrays, dict) else {"*": arrays}
            flat.update({path.replace("*", part): value for part, value in named.items()})
    if unknown:
        raise ValueError(f"{source} has tensors of unknown name: {listed(unknown)}")
    return unflatten(flat)
