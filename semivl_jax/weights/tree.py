"""Parameter trees as flat dicts and back, and the strict comparison of two trees.

In and out: nested dicts of arrays, and flat dicts whose keys are the paths joined with "/".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from semivl_jax.types import PyTree

SHOWN = 12
"""Number of names that an error lists."""


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}, in the tree's order; empty branches are left out."""
    return flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf} -> nested dict. ValueError for a path that is a prefix of another."""
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


def listed(names: Iterable[str]) -> str:
    """The first names as text, without duplicates, and the number of further ones."""
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
      source: origin of `tree`, such as a file, for the error.
      name: from a path to its name in the error.
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
