"""Arrays under published names -> parameter trees in our names and layouts, by rules.

In: state dicts of NumPy arrays. Torch's layouts are Linear (out, in), Conv (out, in, kh, kw), transposed Conv
(in, out, kh, kw), and q, k, v stacked on axis 0 of fused attention projections. Out: nested dicts as Linen's
Dense, Conv, LayerNorm and MultiHeadDotProductAttention name and shape their parameters.

In names "#" matches a number and "*" any text: "blocks.#.norm1.weight". Arrays are translated independently,
so the model need not be complete.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from semivl_jax.types import PyTree
from semivl_jax.weights.tree import check, listed, unflatten

State = Mapping[str, np.ndarray]
Transform = Callable[[np.ndarray, int], np.ndarray | dict[str, np.ndarray]]
"""(array, attention heads) -> array, or arrays by the value of "<part>" in the path."""

_PART = "<part>"
_QKV = ("query", "key", "value")


def same(array: np.ndarray, _: int = 0) -> np.ndarray:
    """Biases, scales, running statistics: unchanged."""
    return array


def linear(weight: np.ndarray, _: int = 0) -> np.ndarray:
    """Linear (out, in) -> Dense kernel (in, out)."""
    return np.ascontiguousarray(weight.T)


def conv(weight: np.ndarray, _: int = 0) -> np.ndarray:
    """Conv2d (out, in, kh, kw) -> Conv kernel (kh, kw, in, out)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def transposed_conv(weight: np.ndarray, _: int = 0) -> np.ndarray:
    """ConvTranspose2d (in, out, f, f) with stride f -> Upsample kernel (f, f, in, out)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 0, 1))


def pointwise(weight: np.ndarray, _: int = 0) -> np.ndarray:
    """Conv2d (out, in, 1, 1) or Linear (out, in) -> Dense kernel (in, out)."""
    if weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(f"a convolution of shape {weight.shape} is not pointwise")
    return linear(weight.reshape(weight.shape[:2]))


def add_axis(array: np.ndarray, _: int = 0) -> np.ndarray:
    """An axis of length 1 in front."""
    return array[None]


def add_axes(array: np.ndarray, _: int = 0) -> np.ndarray:
    """Two axes of length 1 in front."""
    return array[None, None]


def split_heads(array: np.ndarray, num_heads: int) -> np.ndarray:
    """A q, k or v projection: weight (c, d) -> (d, heads, c / heads); bias (c,) -> (heads, c / heads)."""
    heads = array.reshape(num_heads, -1, *array.shape[1:])
    return heads if array.ndim == 1 else np.ascontiguousarray(np.moveaxis(heads, -1, 0))


def split_qkv(array: np.ndarray, num_heads: int) -> dict[str, np.ndarray]:
    """A fused q, k, v projection -> {"query", "key", "value"}, each as `split_heads`."""
    parts = zip(_QKV, np.split(array, 3), strict=True)
    return {name: split_heads(part, num_heads) for name, part in parts}


def split_query_value(bias: np.ndarray, num_heads: int) -> dict[str, np.ndarray]:
    """The fused bias of q, k and v (3c,) -> {"query", "value"}; that of k is masked."""
    return {part: rows for part, rows in split_qkv(bias, num_heads).items() if part != "key"}


def merge_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """An output projection (c, c) -> kernel (heads, c / heads, c)."""
    return np.ascontiguousarray(weight.T).reshape(num_heads, -1, weight.shape[0])


@functools.cache
def pattern(name: str) -> re.Pattern[str]:
    """The regular expression of a name with "#" and "*"."""
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", "(.*)"))


def _filled(name: str, values: Iterable[str]) -> str:
    """The name with `values` for its first "#" and "*"."""
    rest = iter(values)
    return re.sub(r"[#*]", lambda found: next(rest, found[0]), name)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Translation of tensors, and sizes of the module that follow from their shapes.

    name         published name
    path         our path within the collection; None: the tensors are not needed
    transform    see `Transform`
    axes         sizes that are lengths of axes: "width _ patch_size _" names two of four
    count        the size that is the number of different "#"
    collection   "params", "batch_stats"; "": the tree has no collections
    num_heads    attention heads of the tensors' module
    """

    name: str
    path: str | None
    transform: Transform = same
    axes: str = ""
    count: str = ""
    collection: str = "params"
    num_heads: int = 0

    @property
    def full_path(self) -> str:
        """The path with its collection."""
        return f"{self.collection}/{self.path}" if self.collection else f"{self.path}"


Rules = tuple[Rule, ...]

CLASSIFIER: Rules = tuple(
    Rule(f"{layer}.{part}", None) for layer in ("fc", "head") for part in ("weight", "bias")
)
"""Leaves out the last layer of a network trained on ImageNet."""


def norm(name: str, path: str) -> Rules:
    """Weight and bias of a LayerNorm or GroupNorm (or the affine part of a BatchNorm)."""
    return (Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias"))


def layer(
    name: str, path: str, transform: Transform = linear, *, axes: str = "", count: str = ""
) -> Rules:
    """Weight and bias of a linear or convolutional layer."""
    return (
        Rule(f"{name}.weight", f"{path}/kernel", transform, axes, count),
        Rule(f"{name}.bias", f"{path}/bias"),
    )


def attention(qkv: str | tuple[str, str, str], out: str, path: str) -> Rules:
    """Attention -> Linen's MultiHeadDotProductAttention.

    `qkv` are names up to "weight" or "bias": of one fused tensor, or of three.
    """
    if isinstance(qkv, str):
        parts = ((qkv, _PART, split_qkv),)
    else:
        parts = tuple((name, part, split_heads) for name, part in zip(qkv, _QKV, strict=True))
    return (
        *(
            Rule(f"{name}{old}", f"{path}/{part}/{new}", transform)
            for name, part, transform in parts
            for old, new in (("weight", "kernel"), ("bias", "bias"))
        ),
        *layer(out, f"{path}/out", merge_heads),
    )


def transformer_blocks(
    blocks: str,
    *,
    norms: tuple[str, str],
    mlp: tuple[str, str],
    qkv: str | tuple[str, str, str],
    out: str,
    hidden: str = "mlp_dim _",
    encoder: str = "Transformer",
) -> Rules:
    """Pre-LN blocks -> `<encoder>/encoderblock_#`; the parts are named relative to `blocks`."""
    path = f"{encoder}/encoderblock_#"
    qkv = blocks + qkv if isinstance(qkv, str) else tuple(blocks + part for part in qkv)
    return (
        *norm(blocks + norms[0], f"{path}/LayerNorm_0"),
        *norm(blocks + norms[1], f"{path}/LayerNorm_1"),
        *attention(qkv, blocks + out, f"{path}/MultiHeadDotProductAttention_0"),
        *layer(blocks + mlp[0], f"{path}/MlpBlock_0/Dense_0", axes=hidden, count="depth"),
        *layer(blocks + mlp[1], f"{path}/MlpBlock_0/Dense_1"),
    )


def conv_norm(
    conv_name: str, norm_name: str, path: str, *, axes: str = "", count: str = ""
) -> Rules:
    """A convolution and the affine part of its norm -> `ConvNorm`."""
    return (
        *layer(conv_name, f"{path}/conv", conv, axes=axes, count=count),
        *norm(norm_name, f"{path}/norm"),
    )


def conv_batch_norm(conv_name: str, norm_name: str, path: str, *, axes: str = "") -> Rules:
    """A convolution and its batch norm with running statistics -> `ConvNorm`."""
    return (
        *conv_norm(conv_name, norm_name, path, axes=axes),
        Rule(f"{norm_name}.running_mean", f"{path}/norm/mean", collection="batch_stats"),
        Rule(f"{norm_name}.running_var", f"{path}/norm/var", collection="batch_stats"),
        Rule(f"{norm_name}.num_batches_tracked", None),
    )


def place(
    rules: Rules,
    *,
    prefix: str = "",
    branch: str = "",
    num_heads: int = 0,
    collections: bool = True,
) -> Rules:
    """The rules for names that begin with `prefix`, their arrays below `branch` of every collection.

    With `collections` off there are no collections: all arrays are below `branch`.
    """
    below = f"{branch}/" if branch else ""
    return tuple(
        dataclasses.replace(
            rule,
            name=prefix + rule.name,
            path=None if rule.path is None else below + rule.path,
            collection=rule.collection if collections else "",
            num_heads=num_heads,
        )
        for rule in rules
    )


@dataclasses.dataclass(frozen=True)
class Translation:
    """Arrays in our names and layouts, the published name of every path, and the rules."""

    tree: PyTree
    origin: dict[str, str]
    rules: Rules

    def check(self, like: PyTree, *, source: str) -> None:
        """Raises one ValueError that lists missing, unexpected and misshapen tensors by published name."""
        check(self.tree, like, source=source, name=self._published_name)

    def _published_name(self, path: str) -> str:
        """The published name for `path`; `path` itself if no rule matches."""
        if path in self.origin:
            return f"{self.origin[path]} ({path})"
        for rule in self.rules:
            if rule.path is not None:
                match = pattern(rule.full_path.replace(_PART, "*")).fullmatch(path)
                if match is not None:
                    return _filled(rule.name, match.groups())
        return path


def translate(state: State, rules: Iterable[Rule], *, source: str) -> Translation:
    """Translates every array by the first rule that matches its name.

    ValueError, naming `source`, that lists all names without a rule, arrays whose axes do not fit their
    transform or that are no floating-point numbers, and pairs of arrays for one path.
    """
    rules = tuple(rules)
    flat: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    unknown, misshapen, twice, odd = [], [], [], []
    for name, array in state.items():
        array = np.asarray(array)
        matches = ((rule, pattern(rule.name).fullmatch(name)) for rule in rules)
        found = next(((rule, match) for rule, match in matches if match), None)
        if found is None:
            unknown.append(name)
            continue
        rule, match = found
        if rule.path is None:
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            odd.append(f"{name} {array.dtype}")
        try:
            arrays = rule.transform(array, rule.num_heads)
        except (ValueError, IndexError):
            misshapen.append(f"{name} {array.shape}")
            continue
        path = _filled(rule.full_path, match.groups())
        for part, value in (arrays if isinstance(arrays, dict) else {"": arrays}).items():
            whole = path.replace(_PART, part)
            if whole in flat:
                twice.append(f"{name} and {origin[whole]}")
            flat[whole], origin[whole] = value, name
    problems = {
        "of unknown name": unknown,
        "of an odd shape": misshapen,
        "of one meaning": twice,
        "that are no floating-point numbers": odd,
    }
    texts = [f"tensors {problem}: {listed(names)}" for problem, names in problems.items() if names]
    if texts:
        raise ValueError(f"{source} has {'; '.join(texts)}")
    try:
        return Translation(unflatten(flat), origin, rules)
    except ValueError as error:
        raise ValueError(f"{source} holds no tree of parameters: {error}") from error
