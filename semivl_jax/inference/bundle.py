"""What prediction needs of a run, in one folder that works on any machine: `serving/`.

    model.safetensors        variables of the best weights (EMA of the student where one is kept) by path
    text.safetensors         text embeddings of the classes, float32 k×d, and the class of every row
                             (absent, like the text tower, for models without text)
    text_tower.safetensors   CLIP's text tower, float16, so that other classes can be named later
    classes.json             names, definitions, palette
    config.json              the configuration of the run
    metrics.json             scores of the weights on the validation part, by name
    SHA256SUMS               checksums of these files, verified by `load`

The folder is replaced as a whole, so a reader never sees a mixture. The text tower does not change during a
run: it is written once and then linked into every new folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from semivl_jax import buckets, utils
from semivl_jax.config import default_config
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.models import build
from semivl_jax.models.clip_text import text_tower
from semivl_jax.text.class_text import TextTower
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import checksums, files, store
from semivl_jax.weights.tree import check

TEXT_TOWER = "semivl_jax text tower 1"
"""Format of the text tower's file, in its metadata."""
FILES = (
    "model.safetensors",
    "text.safetensors",
    "text_tower.safetensors",
    "classes.json",
    "config.json",
    "metrics.json",
    checksums.FILE,
)

KEYS = {
    "": ("dtype",),
    "data": ("crop",),
    "text": ("decoder",),
    "evaluation": ("mode", "stride", "short_side", "window_batch"),
}
"""Keys that prediction reads, by section, beside those of `model` and of the decoders."""
TRAINING_KEYS = (
    "weights",
    "checkpoint",
    "backbone_weights",
    "conv_encoder_weights",
    "init",
    "finetune",
    "remat",
    "frozen_batch_norm",
    "guidance_grid",
    "guidance_dtype",
)
"""Keys of `model` that prediction does not read."""
RENAMED = {
    "model.taps": "model.out_indices",
    "dpt_decoder.tap_channels": "dpt_decoder.out_channels",
}
"""Keys of earlier versions."""
_AGAIN = "copy the folder once more"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """The contents of the folder.

    Attributes:
      folder: its path.
      config: the keys that prediction reads as the run had them, all others with their defaults.
      info: classes and palette.
      variables: {"params", "batch_stats"}.
      clip_sizes: constructor arguments of the CLIP image tower.
      text: embeddings of the classes; None for models without text.
      tower: the text tower; None for models without text, and in folders of early versions.
      metrics: scores by name, empty where nothing is known.
    """

    folder: Path
    config: ConfigDict
    info: DatasetInfo
    variables: PyTree
    clip_sizes: dict[str, Any]
    text: ClassText | None
    tower: TextTower | None
    metrics: dict[str, float]


def save(
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
    """Replaces the folder by one with these contents (see `Bundle`)."""
    host = jax.tree.map(np.asarray, jax.device_get(variables))
    sizes = {"image": dict(clip_sizes)}
    metadata = {"format": files.SEGMENTER, "kind": config.model.decoder, "sizes": json.dumps(sizes)}
    with utils.replace_folder(folder) as new:
        store.save_tree(new / "model.safetensors", host, metadata)
        if text is not None:
            rows = {name: np.asarray(getattr(text, name)) for name in ("embeddings", "class_of")}
            store.save_tree(new / "text.safetensors", rows, {"format": "semivl_jax class text"})
        if tower is not None:
            _save_tower(
                new / "text_tower.safetensors", tower, old=folder / "text_tower.safetensors"
            )
        utils.write_text(new / "classes.json", json.dumps(info.to_json(), indent=1))
        utils.write_text(new / "config.json", config.to_json(indent=1))
        utils.write_text(new / "metrics.json", json.dumps(dict(metrics), indent=1))
        checksums.write(new)


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


def load(path: str | os.PathLike[str]) -> Bundle:
    """Reads the folder of a run, or its `serving`, also in a bucket.

    Raises:
      ValueError: no such folder, a file of it is missing or damaged, or the folder comes from another version
        and cannot be read.
    """
    if buckets.is_bucket(path):
        path = buckets.fetch(str(path), lambda name: name.removeprefix("serving/") in FILES)
    folder = find(utils.user_path(path))
    verify(folder)
    variables, metadata = store.load_tree(folder / "model.safetensors")
    try:
        clip_sizes = json.loads(metadata["sizes"])["image"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{folder}/model.safetensors does not state the sizes of its image tower: an early version wrote "
            "it; predict with that version, or train again"
        ) from None
    info = _read_info(folder / "classes.json")
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    config = read_config(folder / "config.json")
    text, tower = folder / "text.safetensors", folder / "text_tower.safetensors"
    needs_text = build.needs_text(config.model)
    return Bundle(
        folder=folder,
        config=config,
        info=info,
        variables={"batch_stats": {}, **variables},
        clip_sizes=clip_sizes,
        text=_read_text(text, info) if text.exists() or needs_text else None,
        tower=_read_tower(tower) if tower.exists() else None,
        metrics=metrics,
    )


def verify(folder: Path, names: Collection[str] | None = None) -> None:
    """Compares the files of the folder, or those with the `names`, with its checksums, if it has any.

    Raises:
      ValueError: a file is missing or has other bytes; the message names it.
    """
    try:
        checksums.verify(folder, names)
    except ValueError as error:
        raise ValueError(
            f"{error}; {_AGAIN}, or, if you changed it on purpose, delete {checksums.FILE}"
        ) from error


def read_config(path: Path) -> ConfigDict:
    """The keys of a stored configuration that prediction reads; the others have their defaults.

    Keys that only training reads are ignored, so they may come from another version; `RENAMED` ones are
    translated.

    Raises:
      ValueError: the file cannot be read, or the model has a key that this version does not know.
    """
    stored, config = _read_json(path), default_config()
    decoders = [name for name in config if name.endswith("_decoder")]
    try:
        values = {
            f"{section}.{key}": value
            for section in ("model", *decoders)
            for key, value in stored.get(section, {}).items()
            if section != "model" or key not in TRAINING_KEYS
        }
        for section, keys in KEYS.items():
            known = stored.get(section, {}) if section else stored
            values |= {f"{section}.{key}".lstrip("."): known[key] for key in keys if key in known}
        values = {RENAMED.get(key, key): value for key, value in values.items()}
        config.lock()
        config.update_from_flattened_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} has a key or value that this version does not know ({' '.join(str(error).split())}); "
            "use the version that the model was trained with, or a later one"
        ) from error
    return config


def _save_tower(path: Path, tower: TextTower, *, old: Path) -> None:
    """Writes a text tower as float16, or links the old file if it holds the same one."""
    if _is_intact(old) and store.load_metadata(old).get("made_from") == tower.digest:
        try:
            os.link(old, path)
        except OSError:
            shutil.copyfile(old, path)
        return
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), jax.device_get(tower.params))
    metadata = {"format": TEXT_TOWER, "sizes": json.dumps(tower.sizes), "made_from": tower.digest}
    if tower.logit_bias is not None:
        metadata["logits"] = json.dumps([tower.logit_scale, tower.logit_bias])
    if tower.tokenizer is not None:
        half["tokenizer"] = np.frombuffer(tower.tokenizer, np.uint8)
    store.save_tree(path, half, metadata)


def _is_intact(path: Path) -> bool:
    try:
        return path.is_file() and checksums.verify(path.parent, [path.name])
    except ValueError:
        return False


def _read_tower(path: Path) -> TextTower:
    tree, metadata = store.load_tree(path)
    if metadata.get("format") != TEXT_TOWER:
        raise ValueError(f"{path} is no text tower of semivl_jax; {_AGAIN}")
    try:
        sizes = json.loads(metadata["sizes"])
        ids = jnp.zeros((1, sizes["context_length"]), jnp.int32)
        like = jax.eval_shape(text_tower(sizes).init, jax.random.key(0), ids)["params"]
        scale, bias = json.loads(metadata.get("logits", f"[{ClassText.logit_scale}, null]"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} states no usable sizes ({error}); {_AGAIN}") from error
    tokenizer = tree.pop("tokenizer", None)
    check(tree, like, source=str(path))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)
    return TextTower(
        sizes=sizes,
        params=params,
        tokenizer=None if tokenizer is None else np.asarray(tokenizer, np.uint8).tobytes(),
        logit_scale=scale,
        logit_bias=bias,
    )


def _read_info(path: Path) -> DatasetInfo:
    try:
        return DatasetInfo.from_json(_read_json(path))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks a field or has a wrong one ({error}); {_AGAIN}") from error


def _read_text(path: Path, info: DatasetInfo) -> ClassText:
    tree, _ = store.load_tree(path)
    try:
        rows, class_of = tree["embeddings"], tree["class_of"]
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; {_AGAIN}") from error
    if rows.ndim != 2 or class_of.shape != rows.shape[:1]:
        raise ValueError(
            f"{path} holds rows of shape {rows.shape} for classes of shape {class_of.shape}; {_AGAIN}"
        )
    return ClassText(jnp.asarray(rows), jnp.asarray(class_of), info.num_classes)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_AGAIN}") from error
