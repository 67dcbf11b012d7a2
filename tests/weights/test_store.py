"""Trees of arrays, flat and on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.weights.store import load_tree, save_tree
from semivl_jax.weights.tree import check, flatten, unflatten


def test_trees_flatten_and_return():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
    with pytest.raises(ValueError, match="already the name of an array"):
        unflatten({"a": 1, "a/b": 2})


def test_all_differences_of_two_trees_are_in_one_error():
    have = {"a": np.ones(1), "b": {"c": np.ones((2, 3))}, "x": np.ones(1)}
    like = {"a": np.ones(1), "b": {"c": np.ones((3, 2))}, **{f"m{i}": 0 for i in range(14)}}
    with pytest.raises(ValueError) as error:
        check(have, like, source="w.safetensors")
    assert str(error.value) == (
        f"w.safetensors does not fit the model. missing: {', '.join(f'm{i}' for i in range(12))} and 2 more; "
        "unexpected: x; of another shape: b/c (2, 3) instead of (3, 2)"
    )


def test_a_saved_tree_comes_back(tmp_path):
    kernel = np.asfortranarray(np.random.default_rng(0).normal(size=(2, 3)))
    tree = {"a": {"kernel": kernel}, "n": jnp.arange(4), "scale": np.float32(3)}
    path = tmp_path / "new" / "w.safetensors"
    save_tree(path, tree, {"names": "cat, dog"})
    back, metadata = load_tree(path)
    assert metadata == {"names": "cat, dog"}
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert jax.tree.map(np.shape, back) == {"a": {"kernel": (2, 3)}, "n": (4,), "scale": ()}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"w\.safetensors is not a readable safetensors file"):
        load_tree(path)
    with pytest.raises(ValueError, match=r"other\.safetensors: no such file"):
        load_tree(tmp_path / "other.safetensors")


@pytest.mark.parametrize("start", [b"\x80\0", b"PK"])
def test_a_safetensors_file_may_begin_like_another_format(tmp_path, start):
    """Its first bytes are the length of its header."""
    path, length = tmp_path / "weights.safetensors", int.from_bytes(start, "little")
    # Without a note the header has 88 bytes.
    save_tree(path, {"a": np.ones(3, np.float32)}, {"note": "x" * (length - 88)})
    assert path.read_bytes().startswith(start)
    assert load_tree(path)[0]["a"].sum() == 3
