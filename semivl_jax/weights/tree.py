"""Parameter trees as flat tables and back, and the strict comparison of two trees.

In and out: nested dicts of arrays (as Flax keeps them) and flat dicts whose keys are the same paths
joined with "/". Values are never touched here.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def listed(names: list[str]) -> str:
    """The names as text, the first few spelt out."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def check(tree: PyTree, like: PyTree, *, source: str) -> None:
    """Raise one ValueError that lists every missing, unexpected and misshapen name of `tree`.

    `like` may hold arrays or `jax.ShapeDtypeStruct`s; only names and shapes are compared. `source`
    is what the error names as the origin of `tree` (a file).
    """
    have, want = flatten(tree), flatten(like)
    shapes = [
        f"{path} {tuple(have[path].shape)} instead of {tuple(want[path].shape)}"
        for path in want
        if path in have and tuple(have[path].shape) != tuple(want[path].shape)
    ]
    problems = {
        "missing": [path for path in want if path not in have],
        "unexpected": [path for path in have if path not in want],
        "of another shape": shapes,
    }
    raise_problems(source, problems)


def raise_problems(source: str, problems: Mapping[str, list[str]]) -> None:
    """One ValueError of all kinds of problems that have names; nothing where none has."""
    found = [f"{kind}: {listed(names)}" for kind, names in problems.items() if names]
    if found:
        raise ValueError(f"{source} does not fit the model. " + "; ".join(found))
