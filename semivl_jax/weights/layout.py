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

import jax.numpy as jnp
import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.tree import flatten, listed, raise_problems, unflatten

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
    if weight.shape[2:] != (1, 1):
        raise ValueError(f"a convolution of shape {weight.shape} is not pointwise")
    return linear(weight[:, :, 0, 0])


def heads_in(num_heads: int) -> Layout:
    """Query, key or value projection: weight (c, d) -> kernel (d, heads, c / heads), bias likewise."""

    def split(array: np.ndarray) -> np.ndarray:
        heads = array.reshape(num_heads, -1, *array.shape[1:])
        return heads if array.ndim == 1 else np.ascontiguousarray(np.moveaxis(heads, -1, 0))

    return split


def attention_in(num_heads: int) -> Layout:
    """Fused q, k, v projection -> {"query", "key", "value"}.

    Weight (3c, c) -> kernels (c, heads, c / heads); bias (3c,) -> biases (heads, c / heads).
    """
    part, names = heads_in(num_heads), ("query", "key", "value")
    return lambda array: dict(zip(names, map(part, np.split(array, 3)), strict=True))


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


def separate_attention(pattern: str, path: str, *, num_heads: int) -> tuple[Rule, ...]:
    """Rules for q_proj, k_proj, v_proj and out_proj -> Linen's MultiHeadDotProductAttention."""
    parts = (("q", "query"), ("k", "key"), ("v", "value"))
    return (
        *(
            rule
            for old, new in parts
            for rule in (
                Rule(
                    rf"{pattern}\.{old}_proj\.weight", f"{path}/{new}/kernel", heads_in(num_heads)
                ),
                Rule(rf"{pattern}\.{old}_proj\.bias", f"{path}/{new}/bias", heads_in(num_heads)),
            )
        ),
        Rule(rf"{pattern}\.out_proj\.weight", rf"{path}/out/kernel", attention_out(num_heads)),
        Rule(rf"{pattern}\.out_proj\.bias", rf"{path}/out/bias"),
    )


def below(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with `prefix`, their names without it."""
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }


@dataclass(frozen=True)
class Translation:
    """A state dict in our names and layouts, and where every array came from.

    tree     nested dict of arrays
    origin   published name by our path
    rules    the rules that translated, to say a path in published names
    """

    tree: PyTree
    origin: dict[str, str]
    rules: tuple[Rule, ...]

    def check(self, like: PyTree, *, source: str) -> None:
        """Raise one ValueError that lists every missing, unexpected and misshapen tensor.

        `like` holds arrays or `jax.ShapeDtypeStruct`s. Tensors are listed under their published names.
        """
        have, want = flatten(self.tree), flatten(like)
        misshapen = [
            f"{self.origin[path]} ({path}: {tuple(have[path].shape)} instead of {tuple(leaf.shape)})"
            for path, leaf in want.items()
            if path in have and tuple(have[path].shape) != tuple(leaf.shape)
        ]
        raise_problems(
            source,
            {
                "missing": _unique(
                    published_name(path, self.rules) for path in want if path not in have
                ),
                "unexpected": _unique(self.origin[path] for path in have if path not in want),
                "of another shape": misshapen,
            },
        )


def placed(rules: Iterable[Rule], *, prefix: str, branch: str) -> tuple[Rule, ...]:
    """The rules for names that begin with `prefix`, their arrays below `branch`.

    Paths in a collection ("params", "batch_stats") stay in it: "params/x" becomes "params/branch/x".
    """

    def below_branch(path: str | None) -> str | None:
        if path is None:
            return None
        collection, _, rest = path.partition("/")
        if collection in ("params", "batch_stats"):
            return f"{collection}/{branch}/{rest}"
        return f"{branch}/{path}"

    start = re.escape(prefix)
    return tuple(Rule(start + r.pattern, below_branch(r.path), r.layout) for r in rules)


def translate(
    state: Mapping[str, np.ndarray], rules: Iterable[Rule], *, source: str
) -> Translation:
    """Every tensor by the first rule that matches its name.

    Raises:
      ValueError: names that no rule knows, tensors whose axes do not fit their layout, tensors that mean
        the same as another, all of them; `source` says where they stood.
    """
    rules = tuple(rules)
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    flat: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    unknown, misshapen, twice, odd = [], [], [], []
    for name, array in state.items():
        matches = ((pattern.fullmatch(name), rule) for pattern, rule in compiled)
        found = next(((match, rule) for match, rule in matches if match), None)
        if found is None:
            unknown.append(name)
        elif found[1].path is not None:
            match, rule = found
            if not jnp.issubdtype(np.asarray(array).dtype, jnp.floating):
                odd.append(f"{name} {np.asarray(array).dtype}")
            try:
                arrays = rule.layout(np.asarray(array))
            except (ValueError, IndexError):
                misshapen.append(f"{name} {np.shape(array)}")
                continue
            named = arrays if isinstance(arrays, dict) else {"*": arrays}
            for part, value in named.items():
                path = match.expand(rule.path).replace("*", part)
                if path in flat:
                    twice.append(f"{name} and {origin[path]}")
                flat[path], origin[path] = value, name
    kinds = {
        "of unknown name": unknown,
        "of an odd shape": misshapen,
        "of one meaning": twice,
        "that are no floating-point numbers": odd,
    }
    texts = [f"tensors {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if texts:
        raise ValueError(f"{source} has {'; '.join(texts)}")
    return Translation(unflatten(flat), origin, rules)


def convert(state: Mapping[str, np.ndarray], rules: Iterable[Rule], *, source: str) -> PyTree:
    """The tree alone; see `translate`."""
    return translate(state, rules, source=source).tree


def published_name(path: str, rules: Iterable[Rule]) -> str:
    """The name that rules of plain patterns translate to `path`; `path` itself where there is none."""
    for rule in rules:
        if rule.path is None:
            continue
        template = re.escape(rule.path).replace(r"\*", r"\w+")
        template = re.sub(r"\\\\(\d+)", lambda found: rf"(?P<g{found[1]}>\d+)", template)
        match = re.fullmatch(template, path)
        if match is not None:
            groups = iter(match.groups())
            name = re.sub(r"\([^)]*\)", lambda _, groups=groups: next(groups, "?"), rule.pattern)
            return name.replace("\\d+", "*").replace("\\", "")
    return path


def shape(state: Mapping[str, np.ndarray], name: str, rank: int, *, source: str) -> tuple[int, ...]:
    """Shape of a tensor that sizes are read from; ValueError where it is missing or has other axes."""
    if name not in state:
        raise ValueError(f"{source} lacks {name}, which says the size of the model")
    found = tuple(np.shape(state[name]))
    if len(found) != rank or 0 in found:
        raise ValueError(
            f"{source}: {name} has the shape {found} instead of {rank} axes that are not empty"
        )
    return found


def count(state: Mapping[str, np.ndarray], pattern: str) -> int:
    """How many different numbers stand in the group of `pattern`, which begins a name: blocks, layers."""
    found = (re.match(pattern, name) for name in state)
    return len({match[1] for match in found if match})


def num_heads(width: int, told: int | None, option: str, *, source: str) -> int:
    """Attention heads of a layer of so many channels: as told by the option, else of 64 channels each.

    ValueError where that does not divide the width.
    """
    heads = told or width // 64
    if heads < 1 or width % heads or not (told or width % 64 == 0):
        wrong = f"{told} heads do not divide" if told else "heads of 64 channels do not divide"
        raise ValueError(
            f"{source}: {wrong} the width {width}, and the weights do not say how many there are; give "
            f"--{option}"
        )
    return heads


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
