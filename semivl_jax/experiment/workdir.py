"""The folder of a run; it belongs to one configuration.

    config.json                    the configuration
    labelled.txt, unlabelled.txt   ids of the training images, one per line
    calibration.txt                ids of labelled images that the method withholds

A run can be resumed only with the same configuration, except for keys that do not change the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from semivl_jax import utils
from semivl_jax.config import default_config
from semivl_jax.train import methods

CONFIG = "config.json"

MAY_CHANGE = (
    "accumulation",
    "mesh",
    "log_every",
    "max_skipped_steps",
    "compilation_cache",
    "profile",
    "model.remat",
    "vlg_decoder.remat",
    "data.directory",
    "data.folder",
    "data.manual_dir",
    "data.workers",
    "text.cache",
    "data.prefetch",
    "checkpoint.every",
    "checkpoint.keep",
    "evaluation.window_batch",
    "evaluation.pictures",
    "evaluation.pseudo_label_eval_images",
)
"""Keys that may have other values when a run is resumed.

`data.folder` may be where the same images are now: `claim_lists` compares their ids, `run_log` their masks.
"""
LISTS = ("data.split", "data.unlabelled")
"""Keys that may name a file of the same name elsewhere."""


def claim(workdir: Path, config: ConfigDict, *, writes: bool = True) -> None:
    """Creates the folder with its config.json, or checks that it belongs to this configuration.

    With several processes, only the one with `writes` creates it.

    Raises:
      ValueError: the folder belongs to another configuration; the message names the keys that differ.
    """
    if (workdir / CONFIG).exists():
        check(workdir, config)
    if writes:
        utils.write_text(workdir / CONFIG, config.to_json(indent=1) + "\n")


def check(workdir: Path, config: ConfigDict) -> None:
    """Checks that the folder holds a run with this configuration.

    Raises:
      ValueError: no run, or one with another configuration; the message names the keys that differ.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise ValueError(f"{workdir} holds no run; train first, or name another --workdir")
    try:
        before = json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); delete it if the run had this configuration, or choose "
            "another --workdir"
        ) from error
    default = default_config()
    default.method = ConfigDict(methods.defaults(config.method.name))
    now, defaults = (json.loads(each.to_json()) for each in (config, default))
    differing = list(_differences(before, now, defaults))
    if differing:
        raise ValueError(
            f"{workdir} belongs to a run with {', '.join(differing[:4])}; choose another --workdir, "
            "delete that one, or set the same values"
        )


def read(workdir: Path) -> ConfigDict:
    """The configuration of the run in a folder.

    Raises:
      ValueError: the folder holds no run.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise ValueError(f"{workdir} holds no run (there is no {CONFIG}); name a workdir of main")
    try:
        stored, config = json.loads(path.read_text(encoding="utf8")), default_config()
        config.method = ConfigDict(stored.pop("method"))
        config.update(stored)  # lists become tuples
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no configuration of this version: {error}") from error
    return config


def claim_lists(workdir: Path, lists: Mapping[str, Sequence[str]], *, writes: bool = True) -> None:
    """Writes each list of ids to `NAME.txt`, or checks that the file has the same ids.

    Raises:
      ValueError: the run was started with other images.
    """
    for name, ids in lists.items():
        path = workdir / f"{name}.txt"
        text = "".join(f"{id}\n" for id in ids)
        if path.exists() and path.read_text(encoding="utf8") != text:
            raise ValueError(
                f"{path} names other images than the data set now has under data.split; choose another "
                "--workdir, or restore the images and lists that the run was started with"
            )
        if writes:
            utils.write_text(path, text)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """A key that did not exist in the version that wrote `before` had its default."""
    for key in sorted({*before, *now}):
        name = prefix + key
        if name in MAY_CHANGE:
            continue
        old, new = before.get(key, defaults.get(key)), now.get(key)
        if name in LISTS and _moved(old, new):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, defaults.get(key, {}), name + ".")
        elif old != new:
            yield f"{name} = {old!r} (now {new!r})"


def _moved(old: Any, new: Any) -> bool:
    """Whether both are paths of a file with the same name."""
    paths = [Path(str(value)) for value in (old, new)]
    return all(len(path.parts) > 1 for path in paths) and paths[0].name == paths[1].name
