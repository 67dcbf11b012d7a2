"""Text embeddings of classes: prompts, the text tower, the cache on disk.

In: a `DatasetInfo` (names and concepts of the classes) and a `TextTower`. Out: `ClassText`, float32 rows of
unit length with the class that each describes (docs/semivl.md 2).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from semivl_jax import caches, utils
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.models import clip_text
from semivl_jax.text import siglip_tokenizer, tokenizer
from semivl_jax.text.class_names import MODES
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights.towers import Clip
from semivl_jax.weights.tree import flatten

PROMPT = "a photo of a {}"
"""The one prompt template of the method."""

Embed = Callable[[list[str]], np.ndarray]
"""Sentences to rows, float [k, d], not normalised."""

_ROWS = 16  # sentences per call of the tower: any number of them runs through one compiled function
_VERSION = 1  # of tokenizer, prompt and tower: raise it when the embeddings of a sentence change
_DIGEST = hashlib.sha256().digest_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTower:
    """Constructor arguments of a text tower (`clip_text.text_tower`) and its parameters.

    tokenizer   contents of SigLIP's tokenizer.json; None: CLIP's own tokenizer
    logit_scale, logit_bias   as of `ClassText`
    """

    sizes: dict[str, Any]
    params: PyTree
    tokenizer: bytes | None = None
    logit_scale: float = ClassText.logit_scale
    logit_bias: float | None = None

    @classmethod
    def of(cls, clip: Clip) -> TextTower:
        """The text tower of a CLIP or SigLIP."""
        tower = cls(sizes=clip.text, params=clip.text_params)
        if clip.logit_bias is None:
            return tower  # the method has ×100 whatever the CLIP
        return dataclasses.replace(
            tower,
            tokenizer=clip.tokenizer,
            logit_scale=clip.logit_scale,
            logit_bias=clip.logit_bias,
        )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of sizes, parameter names and values, in hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.sizes, sort_keys=True).encode())
        digest.update(self.tokenizer or b"")
        for name, leaf in sorted(flatten(self.params).items()):
            array = np.asarray(leaf, order="C")
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def embed(self, sentences: list[str]) -> Float32[np.ndarray, "k d"]:
        """Embeddings of sentences, not normalised; in full float32 on every device.

        Raises:
          ValueError: the tower is a SigLIP without its tokenizer, or with another one.
        """
        ids = self._tokenize(sentences)
        padded = np.zeros((-(-len(ids) // _ROWS) * _ROWS, ids.shape[1]), np.int32)
        padded[: len(ids)] = ids
        apply = jax.jit(clip_text.text_tower(self.sizes).apply)
        params = jax.device_put(self.params)
        with jax.default_matmul_precision("highest"):
            parts = [
                apply({"params": params}, padded[start : start + _ROWS])
                for start in range(0, len(padded), _ROWS)
            ]
        return np.concatenate(jax.device_get(parts))[: len(ids)]

    def _tokenize(self, sentences: list[str]) -> Int32[np.ndarray, "k t"]:
        length = self.sizes["context_length"]
        if self.logit_bias is None:
            return tokenizer.tokenize(sentences, context_length=length)
        return siglip_tokenizer.tokenize(
            sentences,
            self.tokenizer,
            context_length=length,
            vocab_size=self.sizes["vocab_size"],
        )


def class_text(info: DatasetInfo, *, mode: str, tower: TextTower, cache: str) -> ClassText:
    """`embed_classes` with a text tower; an empty `cache` keeps nothing on disk."""
    text = embed_classes(info, mode=mode, embed=embedding(tower, cache=cache))
    return text.replace(logit_scale=tower.logit_scale, logit_bias=tower.logit_bias)


def embedding(tower: TextTower, *, cache: str) -> Embed:
    """The tower's embeddings, kept in the folder `cache` unless that is empty."""
    return cached(tower.embed, folder=cache, tower=tower.digest) if cache else tower.embed


def embed_classes(info: DatasetInfo, *, mode: str, embed: Embed) -> ClassText:
    """Embed the classes of a data set (docs/semivl.md 2).

    name             one row per class: its plain name
    concept          one row per concept of its definition; scores are maxed over the rows of a class
    concept_average  one row per class: the mean of its concepts' rows before they are normalised

    Raises:
      ValueError: another mode, or `embed` returns zero, non-finite or misshapen rows.
    """
    if mode not in MODES:
        raise ValueError(f"text mode is {mode!r}; use one of {', '.join(MODES)}")
    classes = info.classes
    groups = [(name,) for name in classes] if mode == "name" else info.definitions
    class_of = np.repeat(np.arange(len(groups), dtype=np.int32), [len(g) for g in groups])
    rows = _embed_once([PROMPT.format(concept) for group in groups for concept in group], embed)
    if mode == "concept_average":
        rows = np.stack([rows[class_of == i].mean(axis=0) for i in range(len(groups))])
        class_of = np.arange(len(groups), dtype=np.int32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(length > 0):
        worst = classes[int(class_of[int(np.argmin(length))])]
        raise ValueError(
            f"the text embedding of class {worst!r} has length 0; check the text tower"
        )
    unit = (rows / length).astype(np.float32)
    return ClassText(jax.device_put(unit), jax.device_put(class_of), num_classes=len(groups))


def _embed_once(sentences: list[str], embed: Embed) -> np.ndarray:
    """Rows float64 [k, d] of the sentences; the same sentence is embedded once."""
    once = list(dict.fromkeys(sentences))
    rows = np.asarray(embed(once), np.float64)
    if rows.ndim != 2 or len(rows) != len(once):
        raise ValueError(f"the text tower returned shape {rows.shape} for {len(once)} sentences")
    if not np.all(np.isfinite(rows)):
        bad = once[int(np.argmin(np.isfinite(rows).all(axis=1)))]
        raise ValueError(f"the text tower returned a non-finite embedding for {bad!r}")
    return rows[[once.index(sentence) for sentence in sentences]]


def cached(embed: Embed, *, folder: str | os.PathLike[str], tower: str) -> Embed:
    """`embed`, but lists of sentences that it has seen are read from `folder`.

    A file is named after the hash of `tower` (a digest of its weights and sizes) and the sentences. It holds
    the SHA-256 of the rest and an array in NumPy's format; a damaged file is replaced. A folder that cannot
    be written is reported and otherwise ignored.
    """
    place = utils.user_path(folder)

    def look_up(sentences: list[str]) -> np.ndarray:
        key = hashlib.sha256(json.dumps([_VERSION, tower, sentences]).encode()).hexdigest()
        path = place / f"{key[:40]}.rows"
        rows = _read(path)
        if rows is None:
            rows = np.asarray(embed(sentences), np.float32)
            _write(path, rows)
        return rows

    return look_up


def _read(path: Path) -> np.ndarray | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        print(f"{path} is damaged; its text embeddings are computed again", file=sys.stderr)
        return None
    return np.load(io.BytesIO(data[_DIGEST:]), allow_pickle=False)


def _write(path: Path, rows: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    data = content.getvalue()
    try:
        with utils.atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
    except OSError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.strerror or str(error)
        consequence = "text embeddings are computed in every run"
        caches.warn(path.parent, reason, "text.cache", consequence)
