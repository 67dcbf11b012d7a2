"""How one module is published: the rules that translate it, and the sizes that its shapes tell.

In: tensors by published name. Out: constructor arguments of our module ("sizes"), and the module. The
tables of all layouts are in `encoder_layouts` and `decoder_layouts`.
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
from semivl_jax.weights.translate import Rules, State, pattern

Sizes = dict[str, Any]
POSITIONS = "positions"
"""Name of the axis of position tables; it becomes the size "grid"."""
_HEAD_CHANNELS = 64
_SIDE = (
    64  # of the images that modules are built with; their parameters are the same for every side
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the weights do not say, or what is to differ from it.

    …_heads      attention heads; None: as published
    grid         rows and columns of the image encoder's position table; None: it is square
    as_trained   CLIP's image tower keeps the activation and LayerNorm epsilon that it was trained with;
                 otherwise it gets exact GELU and 1e-6, as SemiVL runs it (METHOD 1.4)
    """

    image_heads: int | None = None
    text_heads: int | None = None
    decoder_heads: int | None = None
    grid: Grid | None = None
    as_trained: bool = False


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Tensors whose names begin with `prefix`; the methods take names without it. `source` is for errors."""

    state: State
    source: str
    prefix: str = ""

    def axes(self, name: str, axes: str) -> dict[str, int]:
        """Lengths of a tensor's axes by name: `axes` = "width _ patch_size _" names two of four.

        ValueError where the tensor is missing, has another number of axes or is empty.
        """
        name, names = self.prefix + name, axes.split()
        if name not in self.state:
            raise ValueError(f"{self.source} lacks {name}, which says the size of the model")
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
        """How many different numbers stand for the "#" of `name`: blocks, layers."""
        found = map(pattern(self.prefix + name).fullmatch, self.state)
        return len({match[1] for match in found if match})

    def any(self, name: str) -> bool:
        """Whether there is such a tensor; "#" and "*" as in rules."""
        return any(map(pattern(self.prefix + name).fullmatch, self.state))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A module as it is published.

    rules     how its names and arrays become ours, and most sizes
    module    the module of these sizes; encoders return so many maps, the last of them the deepest
    heads     the option that says how many attention heads `width` channels have; "": the module has none,
              or the shapes say it
    extra     further sizes, from the tensors, the sizes so far and the options
    example   an input of the module, as shape and type
    class_rows   rows of the position table that belong to no patch
    refused   names of variants that are not supported, and what an error says of them
    """

    rules: Rules
    module: Callable[[Sizes, int], nn.Module]
    heads: str = ""
    extra: Callable[[Tensors, Sizes, Options], Sizes] = lambda *_: {}
    example: Callable[[Sizes], jax.ShapeDtypeStruct] = lambda _: image()
    class_rows: int = 1
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def sizes(self, tensors: Tensors, options: Options) -> Sizes:
        """Constructor arguments of the module, as JSON keeps them (lists, not tuples).

        ValueError where a tensor that tells a size is missing or misshapen, and for what is `refused`.
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
            told = getattr(options, self.heads)
            found["num_heads"] = num_heads(found["width"], told, self.heads, source=tensors.source)
        return found | self.extra(tensors, found, options)

    def params(self, sizes: Sizes) -> PyTree:
        """Shapes of the parameters of the module of these sizes."""
        return variables(self.module(tupled(sizes), 1), self.example(sizes))["params"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderLayout(Layout):
    """A decoder: `module` takes 1 where there is a convolutional encoder, else 0, and so does `maps`.

    maps   how many maps of the backbone the decoder of these sizes takes
    """

    maps: Callable[[Sizes, int], int]


def image() -> jax.ShapeDtypeStruct:
    """One image."""
    return jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32)


def token_ids(sizes: Sizes) -> jax.ShapeDtypeStruct:
    """One row of tokens."""
    return jax.ShapeDtypeStruct((1, sizes["context_length"]), jnp.int32)


def variables(module: nn.Module, *inputs: Any) -> PyTree:
    """Shapes of the variables of a module that is applied to `inputs`."""
    return jax.eval_shape(lambda *rest: module.init(jax.random.key(0), *rest), *inputs)


def tupled(sizes: Mapping[str, Any]) -> Sizes:
    """Constructor arguments: what JSON keeps as lists are tuples there."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()
    }


def table_grid(patches: int, told: Grid | None, *, source: str) -> Grid:
    """Rows and columns of a position table for so many patches: as told, else square.

    ValueError where that is another number of patches.
    """
    side = math.isqrt(max(patches, 0))
    rows, columns = told or (side, side)
    if rows * columns != patches or patches < 1:
        what = f"{rows}×{columns} = {rows * columns} patches" if told else "a square"
        raise ValueError(
            f"{source}: the position table is for {patches} patches, not for {what}; give its rows and "
            "columns with --grid=ROWSxCOLUMNS"
        )
    return rows, columns


def num_heads(width: int, told: int | None, option: str, *, source: str) -> int:
    """Attention heads of a layer of so many channels: as told by the option, else of 64 channels each.

    ValueError where that does not divide the width.
    """
    heads = told or width // _HEAD_CHANNELS
    if heads < 1 or width % heads or not (told or width % _HEAD_CHANNELS == 0):
        wrong = f"{told} heads do not divide" if told else "heads of 64 channels do not divide"
        raise ValueError(
            f"{source}: {wrong} the width {width}, and the weights do not say how many there are; give "
            f"--{option}"
        )
    return heads
