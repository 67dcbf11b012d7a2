"""The text tower at work: class names and definitions to `ClassText`, through the cache.

In: a `DatasetInfo` and a `TextTower`. Out: float32 rows of unit length with the class of each
(METHOD section 2). Training, prediction, `embed` and `export` get their text here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from semivl_jax.data.dataset_info import MAX_CLASSES, DatasetInfo, parse_classes
from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.text import cache as cache_lib
from semivl_jax.text import embeddings, tokenizer
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights.towers import Clip
from semivl_jax.weights.tree import flatten

CACHE = "~/.cache/semivl_jax/text"
"""Where `text.cache` of configs/base.py points."""

_ROWS = 16
"""Sentences per call of the tower: any number of words runs through one compiled function."""

Classes = str | Path | Sequence[str] | Mapping[str, Sequence[str]]
"""Class names: a file, "a, b, c", a list of names, or names with their concepts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTower:
    """Constructor arguments of `TextTransformer` and its parameters."""

    sizes: dict[str, Any]
    params: PyTree

    @classmethod
    def of(cls, clip: Clip) -> TextTower:
        """The text tower of a CLIP."""
        return cls(sizes=clip.text, params=clip.text_params)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of sizes, names and numbers, in hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.sizes, sort_keys=True).encode())
        for name, leaf in sorted(flatten(self.params).items()):
            array = np.asarray(leaf, order="C")
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def embed(self, sentences: list[str]) -> Float32[np.ndarray, "k d"]:
        """Embeddings of sentences, not normalised; in full float32 on every device."""
        ids = tokenizer.tokenize(sentences, context_length=self.sizes["context_length"])
        padded = np.zeros((-(-len(ids) // _ROWS) * _ROWS, ids.shape[1]), np.int32)
        padded[: len(ids)] = ids
        apply = jax.jit(TextTransformer(**self.sizes).apply)
        params = jax.device_put(self.params)
        with jax.default_matmul_precision("highest"):
            parts = [
                apply({"params": params}, padded[start : start + _ROWS])
                for start in range(0, len(padded), _ROWS)
            ]
        return np.concatenate(jax.device_get(parts))[: len(ids)]


def class_text(info: DatasetInfo, *, mode: str, tower: TextTower, cache: str) -> ClassText:
    """Text of the classes; `mode` is one of `embeddings.MODES`, an empty `cache` keeps nothing."""
    embed: embeddings.Embed = tower.embed
    if cache:
        embed = cache_lib.cached(embed, folder=cache, tower=tower.digest)
    return embeddings.class_text(info, mode=mode, embed=embed)


def read_classes(classes: Classes, *, where: str = "--classes") -> DatasetInfo:
    """Names and concepts that a user gives, in their order.

    A text is the path of a file (one class per line, `name` or `name: concept, concept`) if there is such a
    file, or else names between commas; a mapping gives every name its concepts.

    Raises:
      ValueError: no name, a name twice, an empty name or concept, more than 255 names, a file that is no
        text.
    """
    if isinstance(classes, str | Path):
        return _from_text(str(classes), where)
    names = [" ".join(str(name).split()) for name in classes]
    definitions = [(name,) for name in names]
    if isinstance(classes, Mapping):
        definitions = [tuple(concepts) for concepts in classes.values()]
    return _info(names, definitions, where)


def _from_text(text: str, where: str) -> DatasetInfo:
    path = Path(text).expanduser()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a path, or with characters that none has
        is_file = False
    if is_file:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} cannot be read as text ({error}); write one class name per line"
            ) from error
        return _info(*parse_classes(lines, where=str(path)), str(path))
    if "," not in text and (path.suffix == ".txt" or "/" in text):
        raise ValueError(f"{where}: {text} is no file; correct the path, or give names: a,b,c")
    names = [" ".join(name.split()) for name in text.split(",")]
    return _info(names, [(name,) for name in names], where)


def _info(names: list[str], definitions: list[tuple[str, ...]], where: str) -> DatasetInfo:
    if not names:
        raise ValueError(f"{where} names no class; give a file with one name per line, or a,b,c")
    for position, name in enumerate(names):
        if not name:
            raise ValueError(f"{where}: class {position} has no name; give one, or remove a comma")
        if not definitions[position] or not all(c.strip() for c in definitions[position]):
            raise ValueError(f"{where}: class {name!r} has an empty concept; name or remove it")
        if name in names[:position]:
            raise ValueError(
                f"{where} names the class {name!r} twice (values {names.index(name)} and {position}); "
                "rename or remove one of them"
            )
    if len(names) > MAX_CLASSES:
        raise ValueError(
            f"{where} names {len(names)} classes, a mask can tell {MAX_CLASSES} apart; remove some"
        )
    return DatasetInfo(name=where, classes=tuple(names), definitions=tuple(definitions))
