"""Layouts that golden files of the towers do not reach, and trees on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.weights.layout import Rule, convert
from semivl_jax.weights.store import load_tree, save_tree
from semivl_jax.weights.tree import flatten, unflatten


def test_rules_can_drop_what_is_not_needed():
    rules = (Rule(r"a(\d)", r"x/\1"), Rule(".*count", None))
    assert convert({"a3": np.ones(1), "b.count": np.ones(())}, rules, source="file") == {
        "x": {"3": np.ones(1)}
    }


def test_trees_flatten_and_return():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
    with pytest.raises(ValueError, match="already the name of an array"):
        unflatten({"a": 1, "a/b": 2})


def test_a_saved_tree_comes_back(tmp_path):
    kernel = np.asfortranarray(np.random.default_rng(0).normal(size=(2, 3)))
    tree = {"a": {"kernel": kernel}, "n": jnp.arange(4), "scale": np.float32(3)}
    save_tree(tmp_path / "new" / "w.safetensors", tree, {"names": "cat, dog"})
    back, metadata = load_tree(tmp_path / "new" / "w.safetensors")
    assert metadata == {"names": "cat, dog"}
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert jax.tree.map(np.shape, back) == {"a": {"kernel": (2, 3)}, "n": (4,), "scale": ()}
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["w.safetensors"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "new" / "w.safetensors").stat().st_mode == (
        tmp_path / "plain"
    ).stat().st_mode


def test_a_broken_or_missing_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tree(path, {"a": np.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"w\.safetensors is not a readable safetensors file"):
        load_tree(path)
    with pytest.raises(ValueError, match=r"other\.safetensors: no such file"):
        load_tree(tmp_path / "other.safetensors")
