"""What prediction needs of a run, in one folder that works on any machine: `serving/`.

    model.safetensors        variables of the best weights (average of the student where one is kept) by path
    text.safetensors         text embeddings of the classes, float32 k×d, and the class of every row
                             (not there for models that read no words; nor is the text tower)
    text_tower.safetensors   CLIP's text tower, float16, so that other classes can be named later
    classes.json             names, definitions, palette
    config.json              the configuration of the run
    metrics.json             what the weights scored on the validation part, by name

The folder is written beside the old one and renamed, so a reader never sees half of it. The text tower never
changes during a run: it is written once and then linked into every new folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import base
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.models import build
from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.text.class_text import TextTower
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import files, store
from semivl_jax.weights.tree import check

TEXT_TOWER = "semivl_jax text tower 1"
"""Format of the text tower's file, as it states it."""

FILES = (
    "model.safetensors",
    "text.safetensors",
    "text_tower.safetensors",
    "classes.json",
    "config.json",
    "metrics.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """The contents of the folder; `text` and `tower` are None where the model takes no words.

    So is `tower` where an early version wrote the folder. `clip_sizes` are the constructor arguments of the
    image tower, `metrics` is empty where nothing is known.
    """

    folder: Path
    config: ConfigDict
    info: DatasetInfo
    variables: PyTree
    clip_sizes: dict[str, Any]
    text: ClassText | None
    tower: TextTower | None
    metrics: dict[str, float]


def export(
    folder: Path,
    variables: PyTree,
    *,
    text: ClassText | None,
    tower: TextTower | None,
    clip_sizes: Mapping[str, Any],
    info: DatasetInfo,
    config: ConfigDict,
    metrics: Mapping[str, float],
) -> None:
    """Replaces the folder with one that holds these weights; a model without words has no `text`."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    host = jax.tree.map(np.asarray, jax.device_get(variables))
    sizes = {"image": dict(clip_sizes)}
    metadata = {"format": files.SEGMENTER, "kind": config.model.decoder, "sizes": json.dumps(sizes)}
    store.save_tree(temporary / "model.safetensors", host, metadata)
    if text is not None:
        rows = {"embeddings": np.asarray(text.embeddings), "class_of": np.asarray(text.class_of)}
        store.save_tree(temporary / "text.safetensors", rows, {"format": "semivl_jax class text"})
    if tower is not None:
        _keep_tower(folder / "text_tower.safetensors", temporary / "text_tower.safetensors", tower)
    (temporary / "classes.json").write_text(json.dumps(info.to_json(), indent=1), encoding="utf8")
    (temporary / "config.json").write_text(config.to_json(indent=1), encoding="utf8")
    (temporary / "metrics.json").write_text(json.dumps(dict(metrics), indent=1), encoding="utf8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find(path: Path) -> Path:
    """The folder itself, or `serving` below the working directory of a run.

    Raises:
      ValueError: neither holds a model.
    """
    for folder in (path, path / "serving"):
        if (folder / "model.safetensors").is_file():
            return folder
    if (path / "config.json").is_file() and not (path / "classes.json").exists():
        raise ValueError(
            f"{path} is a run without a model yet; let it train until its first evaluation"
        )
    raise ValueError(
        f"{path} holds no model; name the working directory of a run, or its folder serving"
    )


def load(path: str | os.PathLike[str]) -> Served:
    """Reads the folder of a run, or its `serving`.

    Raises:
      ValueError: no such folder, a file of it is missing or damaged, or the folder comes from an earlier or
        later version and lacks something.
    """
    folder = find(Path(path).expanduser())
    variables, metadata = store.load_tree(folder / "model.safetensors")
    try:
        clip_sizes = json.loads(metadata["sizes"])["image"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{folder}/model.safetensors does not state the sizes of its image tower: an early version wrote "
            "it; predict with that version, or train again"
        ) from None
    info = _info(folder / "classes.json")
    metrics = _json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    config = _config(folder / "config.json")
    text, tower = folder / "text.safetensors", folder / "text_tower.safetensors"
    return Served(
        folder=folder,
        config=config,
        info=info,
        variables={"batch_stats": {}, **variables},
        clip_sizes=clip_sizes,
        text=_text(text, info) if text.exists() or build.needs_clip(config.model) else None,
        tower=load_tower(tower) if tower.exists() else None,
        metrics=metrics,
    )


def save_tower(path: Path, tower: TextTower) -> None:
    """Writes a text tower as float16."""
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), jax.device_get(tower.params))
    metadata = {"format": TEXT_TOWER, "sizes": json.dumps(tower.sizes), "made_from": tower.digest}
    store.save_tree(path, half, metadata)


def load_tower(path: Path) -> TextTower:
    """Reads it, float32. ValueError where the file is damaged or holds something else."""
    tree, metadata = store.load_tree(path)
    if metadata.get("format") != TEXT_TOWER:
        raise ValueError(f"{path} is no text tower of semivl_jax; copy the folder once more")
    try:
        sizes = json.loads(metadata["sizes"])
        ids = jnp.zeros((1, sizes["context_length"]), jnp.int32)
        like = jax.eval_shape(TextTransformer(**sizes).init, jax.random.key(0), ids)["params"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} states no usable sizes ({error}); copy the folder once more"
        ) from error
    check(tree, like, source=str(path))
    return TextTower(
        sizes=sizes, params=jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)
    )


def _keep_tower(old: Path, new: Path, tower: TextTower) -> None:
    """The old file if it is this tower's, linked where the disk can do that; or a new one."""
    if old.is_file() and store.load_metadata(old).get("made_from") == tower.digest:
        try:
            os.link(old, new)
        except OSError:
            shutil.copyfile(old, new)
        return
    save_tower(new, tower)


def _config(path: Path) -> ConfigDict:
    """The stored configuration; keys that came after it was written have their defaults."""
    config = base.get_config()
    config.lock()
    stored = _json(path)
    try:
        config.update(stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} has a key or value that this version does not know ({' '.join(str(error).split())}); "
            "use the version that the model was trained with, or a later one"
        ) from error
    return config


def _info(path: Path) -> DatasetInfo:
    try:
        return DatasetInfo.from_json(_json(path))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} lacks or garbles a field ({error}); copy the folder once more"
        ) from error


def _text(path: Path, info: DatasetInfo) -> ClassText:
    tree, _ = store.load_tree(path)
    try:
        rows, class_of = tree["embeddings"], tree["class_of"]
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; copy the folder once more") from error
    if rows.ndim != 2 or class_of.shape != rows.shape[:1]:
        raise ValueError(
            f"{path} holds rows of shape {rows.shape} for classes of shape {class_of.shape}; copy the folder "
            "once more"
        )
    return ClassText(jnp.asarray(rows), jnp.asarray(class_of), info.num_classes)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy the folder once more") from error
