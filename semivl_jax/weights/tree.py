"""Parameter trees as flat tables and back, and the strict comparison of two trees.

In and out: nested dicts of arrays (as Flax keeps them) and flat dicts whose keys are the same paths joined
with "/". Arrays are never read or changed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from semivl_jax.types import PyTree

SHOWN = 12
"""Names an error lists before it says how many more there are."""


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}, in the tree's order; empty branches vanish."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf} -> nested dict. A path that is also the beginning of another: ValueError."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *branches, name = path.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r}: {branch!r} is already the name of an array")
        if name in node:
            raise ValueError(f"{path!r} is there twice, or is also a branch")
        node[name] = leaf
    return tree


def map_leaves(function: Callable[[Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with `function` applied to every leaf; empty branches stay."""
    return {
        name: map_leaves(function, value) if isinstance(value, Mapping) else function(value)
        for name, value in tree.items()
    }


def listed(names: Iterable[str]) -> str:
    """The names as text, the first few spelt out, each once."""
    names = list(dict.fromkeys(names))
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def check(
    tree: PyTree, like: PyTree, *, source: str, name: Callable[[str], str] = lambda path: path
) -> None:
    """Raises one ValueError that lists every missing, unexpected and misshapen leaf of `tree`.

    Args:
      tree: arrays.
      like: arrays or `jax.ShapeDtypeStruct`s; only paths and shapes are compared.
      source: where `tree` comes from, such as a file.
      name: how the error calls a path; by default as it is.
    """
    have, want = flatten(tree), flatten(like)
    shapes = {
        path: (tuple(have[path].shape), tuple(want[path].shape)) for path in want.keys() & have
    }
    problems = {
        "missing": [name(path) for path in want if path not in have],
        "unexpected": [name(path) for path in have if path not in want],
        "of another shape": [
            f"{name(path)} {shapes[path][0]} instead of {shapes[path][1]}"
            for path in want
            if path in shapes and shapes[path][0] != shapes[path][1]
        ],
    }
    found = [f"{problem}: {listed(names)}" for problem, names in problems.items() if names]
    if found:
        raise ValueError(f"{source} does not fit the model. " + "; ".join(found))
