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


def conv_1x1_as_linear(weight: np.ndarray) -> np.ndarray:
    """Conv2d (out, in, 1, 1) that acts on single pixels -> Dense kernel (in, out)."""
    return linear(weight[:, :, 0, 0])


def attention_in(num_heads: int) -> Layout:
    """Fused q, k, v projection -> {"query", "key", "value"}.

    Weight (3c, c) -> kernels (c, heads, c / heads); bias (3c,) -> biases (heads, c / heads).
    """

    def split(array: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.split(array, 3)
        heads = [part.reshape(num_heads, -1, *part.shape[1:]) for part in parts]
        names = ("query", "key", "value")
        if array.ndim == 1:
            return dict(zip(names, heads, strict=True))
        kernels = [np.ascontiguousarray(np.moveaxis(part, -1, 0)) for part in heads]
        return dict(zip(names, kernels, strict=True))

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
        misshapen = {
            self.origin[
                path
            ]: f"{self.origin[path]} makes {path} {tuple(have[path].shape)} instead of "
            f"{tuple(leaf.shape)}"
            for path, leaf in want.items()
            if path in have and tuple(have[path].shape) != tuple(leaf.shape)
        }
        raise_problems(
            source,
            {
                "missing": _unique(
                    published_name(path, self.rules) for path in want if path not in have
                ),
                "unexpected": _unique(self.origin[path] for path in have if path not in want),
                "of another shape": list(misshapen.values()),
            },
        )


def translate(
    state: Mapping[str, np.ndarray], rules: Iterable[Rule], *, source: str
) -> Translation:
    """Every tensor by the first rule that matches its name.

    Raises:
      ValueError: names that no rule knows and tensors whose number of axes no layout fits, all of them;
        `source` says where they stood.
    """
    rules = tuple(rules)
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    flat: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    unknown, misshapen = [], []
    for name, array in state.items():
        matches = ((pattern.fullmatch(name), rule) for pattern, rule in compiled)
        found = next(((match, rule) for match, rule in matches if match), None)
        if found is None:
            unknown.append(name)
        elif found[1].path is not None:
            match, rule = found
            try:
                arrays = rule.layout(np.asarray(array))
            except (ValueError, IndexError):
                misshapen.append(f"{name} {np.shape(array)}")
                continue
            named = arrays if isinstance(arrays, dict) else {"*": arrays}
            for part, value in named.items():
                path = match.expand(rule.path).replace("*", part)
                flat[path], origin[path] = value, name
    if unknown or misshapen:
        found_problems = {"tensors of unknown name": unknown, "tensors of an odd shape": misshapen}
        texts = [f"{what}: {listed(names)}" for what, names in found_problems.items() if names]
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


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
