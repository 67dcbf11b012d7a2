"""The folder that prediction reads: whole, replaced as a whole, and readable without the run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from semivl_jax import serving
from semivl_jax.data.catalog import DatasetInfo
from semivl_jax.types import ClassText
from semivl_jax.weights import store

INFO = DatasetInfo(name="toy", classes=("ground", "disc"), definitions=(("floor",), ("disc", "ø")))
TEXT = ClassText(jnp.eye(3), jnp.array([0, 1, 1]), 2)


def variables(value):
    return {"params": {"decoder": {"kernel": jnp.full((2, 3), value)}}, "batch_stats": {}}


def export(folder, value):
    serving.export(folder, variables(value), TEXT, INFO, tiny.get_config())


def test_everything_comes_back(tmp_path):
    export(tmp_path / "serving", 1.5)
    folder = tmp_path / "serving"
    tree, _ = store.load_tree(folder / "model.safetensors")
    np.testing.assert_array_equal(tree["params"]["decoder"]["kernel"], np.full((2, 3), 1.5))
    text, _ = store.load_tree(folder / "text.safetensors")
    np.testing.assert_array_equal(text["embeddings"], TEXT.embeddings)
    np.testing.assert_array_equal(text["class_of"], TEXT.class_of)
    back = DatasetInfo.from_json(json.loads((folder / "classes.json").read_text()))
    assert back.classes == INFO.classes and back.definitions == INFO.definitions
    assert json.loads((folder / "config.json").read_text())["batch"] == tiny.get_config().batch


def test_the_next_best_replaces_the_folder_and_remains_of_a_kill_go(tmp_path):
    folder = tmp_path / "serving"
    export(folder, 1.0)
    for remains in ("serving.tmp", "serving.old"):
        (tmp_path / remains).mkdir()
        (tmp_path / remains / "half").write_text("")
    export(folder, 2.0)
    tree, _ = store.load_tree(folder / "model.safetensors")
    assert tree["params"]["decoder"]["kernel"][0, 0] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["serving"]


def test_an_export_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "serving"
    export(folder, 1.0)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "save_tree", full)
    with pytest.raises(OSError, match="no space left"):
        export(folder, 2.0)
    monkeypatch.undo()
    tree, _ = store.load_tree(folder / "model.safetensors")
    assert tree["params"]["decoder"]["kernel"][0, 0] == 1.0
