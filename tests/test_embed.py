"""The command `embed`: what is written and how it is compared."""

import numpy as np
import pytest

from semivl_jax import embed
from semivl_jax.text import class_text
from semivl_jax.weights import store, towers
from tests import served


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setattr(towers, "load", lambda *_: served.clip())


def run(*arguments):
    return embed.main([*arguments, "--weights", "w", "--text_cache="])


def test_files_and_their_comparison(tmp_path, capsys):
    npy, tensors = tmp_path / "a" / "voc.npy", tmp_path / "voc.safetensors"
    assert run("--dataset", "cityscapes", "--out", str(npy), "--dtype", "float16") == 0
    rows = np.load(npy)
    assert rows.dtype == np.float16 and rows.shape == (19, 16)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=2e-3)
    code = run("--dataset", "cityscapes", "--mode", "concept", "--out", str(tensors))
    tree, metadata = store.load_tree(tensors)
    assert code == 0 and tree["embeddings"].shape == (54, 16)
    assert np.bincount(tree["class_of"])[0] == 3 and metadata["mode"] == "concept"
    capsys.readouterr()
    same = ["--dataset", "cityscapes", "--out", str(tmp_path / "b.npy"), "--compare", str(npy)]
    assert run(*same) == 0
    printed = capsys.readouterr().out
    assert "all rows alike" in printed and "road" in printed
    rows[7] = rows[7][::-1]
    np.save(npy, rows)
    assert run(*same) == 1
    printed = capsys.readouterr().out
    assert "1 of 19 rows differ" in printed and "traffic sign   differs" in printed


def test_own_classes_with_definitions(tmp_path):
    classes, out = tmp_path / "classes.txt", tmp_path / "own.npy"
    classes.write_text("road\nvehicle: car, bus\n")
    assert run("--classes_file", str(classes), "--definitions", "--out", str(out)) == 0
    tower = class_text.TextTower.of(served.clip())
    rows = tower.embed([f"a photo of a {name}" for name in ("road", "car", "bus")])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(out), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "voc", "--out", "x.txt"], "end the name with .npy or .safetensors"),
        (["--classes_file", "none.txt", "--out", "x.npy"], "none.txt is no file"),
        (["--dataset", "voc", "--out", "x.npy", "--compare", "z.npy"], "z.npy cannot be read"),
        (["--dataset", "voc", "--out", "x.npy", "--compare", "y.npy"], "has the shape (2, 3), the"),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", np.ones((2, 3)))
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
