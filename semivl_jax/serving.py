"""What prediction needs of a run, in one folder: `serving/`.

    model.safetensors   variables of the best weights (average of the student where one is kept) by path
    text.safetensors    text embeddings of the classes, float32 k×d, and the class of every row
                        (not there for models that read no words)
    classes.json        names, definitions, palette
    config.json         the configuration of the run

The folder is written beside the old one and renamed, so a reader never sees half of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from semivl_jax.data.catalog import DatasetInfo
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import store


def export(
    folder: Path, variables: PyTree, text: ClassText | None, info: DatasetInfo, config: ConfigDict
) -> None:
    """Replaces the folder with one that holds these weights."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    host = jax.tree.map(np.asarray, jax.device_get(variables))
    store.save_tree(temporary / "model.safetensors", host, {"format": "semivl_jax segmenter"})
    if text is not None:
        rows = {"embeddings": np.asarray(text.embeddings), "class_of": np.asarray(text.class_of)}
        store.save_tree(temporary / "text.safetensors", rows, {"format": "semivl_jax class text"})
    (temporary / "classes.json").write_text(json.dumps(info.to_json(), indent=1), encoding="utf8")
    (temporary / "config.json").write_text(config.to_json(indent=1), encoding="utf8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
