"""Published layout of one module: rules for its names and arrays, and sizes from its shapes.

In: tensors by published name. Out: constructor arguments of our module ("sizes"), and the module. The tables
are in `encoder_layouts` and `decoder_layouts`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from semivl_jax.models.pos_embed import Grid
from semivl_jax.types import PyTree
from semivl_jax.weights.rename import Rules, State, pattern

Sizes = dict[str, Any]
POSITIONS = "positions"
"""Name of the axis of position tables; it becomes the size "grid"."""
ACTIVATIONS = ("quick_gelu", "gelu")
_HEAD_CHANNELS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What cannot be read from the weights.

    …_heads      attention heads; None: as published
    grid         rows and columns of the image encoder's position table; None: square
    as_trained   CLIP's image tower keeps the activation and LayerNorm epsilon of its training; otherwise it
                 has exact GELU and 1e-6, as in SemiVL (docs/semivl.md 1.4)
    activation   of CLIP's training, one of ACTIVATIONS; "": as files beside the weights say
    tokenizer    contents of SigLIP's tokenizer.json; None: of the file beside the weights, if there is one
    """

    image_heads: int | None = None
    text_heads: int | None = None
    decoder_heads: int | None = None
    grid: Grid | None = None
    as_trained: bool = False
    activation: str = ""
    tokenizer: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Tensors whose names begin with `prefix`; the methods take names without it. `source` is for errors."""

    state: State
    source: str
    prefix: str = ""

    def axes(self, name: str, axes: str) -> dict[str, int]:
        """Lengths of a tensor's axes by name: `axes` = "width _ patch_size _" names two of four.

        ValueError if the tensor is missing, has another number of axes or is empty.
        """
        name, names = self.prefix + name, axes.split()
        if name not in self.state:
            raise ValueError(f"{self.source} lacks {name}, which has the size of the model")
        shape = tuple(np.shape(self.state[name]))
        if len(shape) != len(names) or 0 in shape:
            raise ValueError(
                f"{self.source}: {name} has the shape {shape} instead of {len(names)} axes that are not empty"
            )
        return {axis: size for axis, size in zip(names, shape, strict=True) if axis != "_"}

    def axis(self, name: str, axes: str) -> int:
        """The length of the one axis that `axes` names."""
        (length,) = self.axes(name, axes).values()
        return length

    def count(self, name: str) -> int:
        """Number of different numbers at the "#" of `name`: blocks, layers."""
        found = map(pattern(self.prefix + name).fullmatch, self.state)
        return len({match[1] for match in found if match})

    def any(self, name: str) -> bool:
        """Whether there is such a tensor; "#" and "*" as in rules."""
        return any(map(pattern(self.prefix + name).fullmatch, self.state))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A module as it is published.

    rules        from its names and arrays to ours, and most sizes
    module       from sizes and number of maps (of encoders, the last is the deepest) to the module
    heads        the option for the number of attention heads; "": not needed
    extra        further sizes, from the tensors, the sizes so far and the options
    example      an input of the module, as shape and type
    class_rows   rows of the position table that belong to no patch
    refused      names of variants that are not supported, and the error for them
    """

    rules: Rules
    module: Callable[[Sizes, int], nn.Module]
    heads: str = ""
    extra: Callable[[Tensors, Sizes, Options], Sizes] = lambda *_: {}
    example: Callable[[Sizes], jax.ShapeDtypeStruct] = lambda _: image()
    class_rows: int = 1
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def sizes(self, tensors: Tensors, options: Options) -> Sizes:
        """Constructor arguments of the module, with lists for tuples as in JSON.

        ValueError if a tensor needed for a size is missing or misshapen, and for what is `refused`.
        """
        for name, reason in self.refused.items():
            if tensors.any(name):
                raise ValueError(f"{tensors.source} {reason}")
        found: Sizes = {}
        for rule in self.rules:
            if rule.axes:
                found |= tensors.axes(rule.name.replace("#", "0"), rule.axes)
            if rule.count:
                found[rule.count] = tensors.count(rule.name)
        if POSITIONS in found:
            patches = found.pop(POSITIONS) - self.class_rows
            found["grid"] = list(table_grid(patches, options.grid, source=tensors.source))
        if self.heads:
            given = getattr(options, self.heads)
            found["num_heads"] = num_heads(found["width"], given, self.heads, source=tensors.source)
        return found | self.extra(tensors, found, options)

    def params(self, sizes: Sizes) -> PyTree:
        """Shapes of the parameters of the module of these sizes."""
        return variables(self.module(tupled(sizes), 1), self.example(sizes))["params"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderLayout(Layout):
    """A decoder: second argument of `module` and `maps` is 1 with a convolutional encoder, else 0.

    maps   number of maps of the backbone
    """

    maps: Callable[[Sizes, int], int]


def image() -> jax.ShapeDtypeStruct:
    """One image; parameters do not depend on its size."""
    return jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


def token_ids(sizes: Sizes) -> jax.ShapeDtypeStruct:
    """One row of tokens."""
    return jax.ShapeDtypeStruct((1, sizes["context_length"]), jnp.int32)


def variables(module: nn.Module, *inputs: Any) -> PyTree:
    """Shapes of the variables of a module that is applied to `inputs`."""
    return jax.eval_shape(lambda *rest: module.init(jax.random.key(0), *rest), *inputs)


def tupled(sizes: Mapping[str, Any]) -> Sizes:
    """The sizes with tuples for the lists of JSON."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()
    }


def table_grid(patches: int, given: Grid | None, *, source: str) -> Grid:
    """Rows and columns of a position table: as given, else square.

    ValueError if that is another number of patches.
    """
    side = math.isqrt(max(patches, 0))
    rows, columns = given or (side, side)
    if rows * columns != patches or patches < 1:
        what = f"{rows}×{columns} = {rows * columns} patches" if given else "a square"
        raise ValueError(
            f"{source}: the position table is for {patches} patches, not for {what}; give its rows and "
            "columns with --grid=ROWSxCOLUMNS"
        )
    return rows, columns


def num_heads(width: int, given: int | None, option: str, *, source: str) -> int:
    """Attention heads of a layer: as given by the option, else of 64 channels each.

    ValueError if they do not divide the width.
    """
    heads = given or width // _HEAD_CHANNELS
    if heads < 1 or width % heads or not (given or width % _HEAD_CHANNELS == 0):
        wrong = f"{given} heads" if given else f"heads of {_HEAD_CHANNELS} channels"
        raise ValueError(
            f"{source}: {wrong} do not divide the width {width}, and the weights do not contain their "
            f"number; give --{option}"
        )
    return heads
