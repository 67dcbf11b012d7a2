"""The folder of a run: claimed by one configuration, never mixed with another's.

`config.json` holds the configuration, `labelled.txt` and `unlabelled.txt` the ids of the images that the run
learns from. A run may go on with other values only where they change nothing that is computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_NAME = "config.json"

# These decide how and how often something is done, not what comes out.
FREE = (
    "accumulation",
    "mesh",
    "log_every",
    "max_skipped_steps",
    "compilation_cache",
    "data.directory",
    "data.manual_dir",
    "data.workers",
    "text.cache",
    "data.prefetch",
    "checkpoint.every",
    "checkpoint.keep",
    "evaluation.window_batch",
    "evaluation.pictures",
    "evaluation.held_back",
)


def claim(workdir: Path, config: ConfigDict, *, writes: bool = True) -> None:
    """Creates the folder, or makes sure that it belongs to this configuration.

    With several processes one writes; the others only make sure.

    Raises:
      ValueError: the folder was made with another configuration; the keys that differ are named.
    """
    if (workdir / _NAME).exists():
        check(workdir, config)
    if writes:
        workdir.mkdir(parents=True, exist_ok=True)
        write(workdir / _NAME, config.to_json(indent=1))


def check(workdir: Path, config: ConfigDict) -> None:
    """Makes sure that a run of this configuration is there; changes nothing.

    Raises:
      ValueError: no run, or one of another configuration; the keys that differ are named.
    """
    path = workdir / _NAME
    if not path.exists():
        raise ValueError(f"{workdir} holds no run; train first, or name another --workdir")
    try:
        before = json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); choose another --workdir") from error
    differing = list(_differences(before, json.loads(config.to_json())))
    if differing:
        raise ValueError(
            f"{workdir} belongs to a run with {', '.join(differing[:4])}; choose another --workdir, "
            "delete that one, or set the same values"
        )


def write(path: Path, text: str) -> None:
    """Replaces a text file; a reader sees the old one or the new one, never a part."""
    _replace(path, text + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf8")
    os.replace(temporary, path)


def record_lists(workdir: Path, lists: Mapping[str, Sequence[str]], *, writes: bool = True) -> None:
    """Writes each list of ids to `NAME.txt`, one per line, or makes sure that it is the same.

    Raises:
      ValueError: the run began with other images.
    """
    for name, ids in lists.items():
        path = workdir / f"{name}.txt"
        text = "".join(f"{id}\n" for id in ids)
        if path.exists() and path.read_text(encoding="utf8") != text:
            raise ValueError(
                f"{path} names other images than the data set now has under data.split; choose another "
                "--workdir, or restore the images and lists that the run began with"
            )
        if writes:
            _replace(path, text)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for key in sorted({*before, *now}):
        name = prefix + key
        if name in FREE:
            continue
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, name + ".")
        elif old != new:
            yield f"{name} = {old!r} (now {new!r})"
