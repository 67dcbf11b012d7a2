"""Floating-point operations of a traced function, without lowering or compiling it.

In: what `jax.jit(f).trace(...)` returns. Out: operations (2 per multiply-add) of its matrix
products and convolutions, as written, and of the products inside of cuDNN's attention. Elementwise operations
are not counted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval
from jax.stages import Traced


def of_traced(traced: Traced) -> float:
    """Operations of all equations that the outputs need, also inside of calls.

    A scan counts with its length, a condition with its most expensive branch, and a `while` loop as one
    round, because the number of rounds is unknown.
    """
    jaxpr = traced.jaxpr.jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(needed)


def _of_jaxpr(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns), start=0.0)


def _of_equation(equation: JaxprEqn) -> float:
    rule = _RULES.get(equation.primitive.name)
    if rule is not None:
        return rule(equation)
    inner = [_of_jaxpr(each) for value in equation.params.values() for each in _jaxprs(value)]
    if equation.primitive.name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner, start=0.0)


def _jaxprs(value: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, ClosedJaxpr | Jaxpr):
            yield each


def _product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> float:
    """Multiplications by padding, or between the pixels of a dilated input, are not counted."""
    of, (image, kernel), (out,) = equation.params, equation.invars, equation.outvars
    names = of["dimension_numbers"]
    batch, features, *sides = (image.aval.shape[axis] for axis in names.lhs_spec)
    channels, _, *taps = (kernel.aval.shape[axis] for axis in names.rhs_spec)
    outputs = [out.aval.shape[axis] for axis in names.out_spec[2:]]
    pairs = 1.0
    for axis, (side, size, length) in enumerate(zip(sides, taps, outputs, strict=True)):
        spread = of["lhs_dilation"][axis]
        starts = np.arange(length) * of["window_strides"][axis] - of["padding"][axis][0]
        at = starts[:, None] + np.arange(size) * of["rhs_dilation"][axis]
        pairs *= np.sum((at >= 0) & (at <= (side - 1) * spread) & (at % spread == 0))
    per_group = features // of["feature_group_count"] * channels
    return float(2 * pairs * per_group * (batch // of["batch_group_count"]))


def _fused_attention(products: int, equation: JaxprEqn) -> float:
    """`products` of queries b×t×h×d with keys b×s×h×d, or of the weights with as many channels."""
    query, key = (each.aval.shape for each in equation.invars[:2])
    return 2.0 * products * math.prod(query) * key[1]


_RULES = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    # Scores and mixed values; the backward pass computes the scores again, and four gradients.
    "dot_product_attention_fwd_wrapper": functools.partial(_fused_attention, 2),
    "dot_product_attention_bwd_wrapper": functools.partial(_fused_attention, 5),
}
