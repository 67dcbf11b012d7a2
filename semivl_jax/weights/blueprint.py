"""Published weights against a model of the same sizes, built with shapes only.

In: a state dict, the rules that translate it, a module with inputs of any values. Out: `files.Weights`,
arrays in the dtype that they came in, after making sure that every parameter and statistic of the module
is there once, in its shape, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from semivl_jax.types import ClassText
from semivl_jax.weights import files
from semivl_jax.weights.layout import Rule, translate

State = Mapping[str, np.ndarray]


def checked(
    state: State,
    rules: Iterable[Rule],
    model: nn.Module,
    *inputs: Any,
    format: str,
    kind: str,
    sizes: dict[str, Any],
    source: str,
) -> files.Weights:
    """The weights of `model`; rules lead into "params" and "batch_stats".

    Raises:
      ValueError: tensors are missing, unexpected or misshapen, or the sizes make no model.
    """
    translation = translate(state, rules, source=source)
    try:
        like = jax.eval_shape(lambda *rest: model.init(jax.random.key(0), *rest), *inputs)
    except (
        ValueError,
        TypeError,
    ) as error:  # whatever module notices that sizes do not go together
        raise ValueError(f"{source} has sizes that make no model ({error})") from error
    translation.check(like, source=source)
    tree = {"batch_stats": {}, **translation.tree}
    return files.Weights(format=format, kind=kind, sizes=sizes, tree=tree)


def image_like(side: int) -> jax.ShapeDtypeStruct:
    """One image of that side, without values."""
    return jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


def text_like(dim: int) -> ClassText:
    """Two classes described in so many dimensions."""
    return ClassText(jnp.zeros((2, dim)), jnp.arange(2), 2)


def tupled(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments: what JSON keeps as lists are tuples there."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()
    }
