"""Text embeddings kept on disk under the hash of what they were made from.

In: sentences and a function that embeds them. Out: the same rows, float32 [k, d]. An entry is a file of the
SHA-256 of its content and the content, an array in NumPy's format; one that is not what was written is
noticed and made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np

from semivl_jax.text.embeddings import Embed

_VERSION = 1  # of tokenizer, prompts and tower: raise it when the same words get other numbers
_DIGEST = hashlib.sha256().digest_size


def cached(embed: Embed, *, folder: str | os.PathLike[str], tower: str) -> Embed:
    """`embed`, but lists of sentences that it has seen are read from `folder`.

    `tower` is a hash of the text tower's weights and sizes. A folder that cannot be written is reported
    once per list; the embeddings come all the same.
    """
    place = Path(folder).expanduser()

    def look_up(sentences: list[str]) -> np.ndarray:
        path = place / f"{_key(tower, sentences)}.rows"
        rows = _read(path)
        if rows is None:
            rows = np.asarray(embed(sentences), np.float32)
            _write(path, rows)
        return rows

    return look_up


def _key(tower: str, sentences: list[str]) -> str:
    return hashlib.sha256(json.dumps([_VERSION, tower, sentences]).encode()).hexdigest()[:40]


def _read(path: Path) -> np.ndarray | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        print(f"{path} is damaged; its text embeddings are made again", file=sys.stderr)
        return None
    return np.load(io.BytesIO(data[_DIGEST:]), allow_pickle=False)


def _write(path: Path, rows: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    data = content.getvalue()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(hashlib.sha256(data).digest() + data)
        unfinished.replace(path)
    except OSError as error:
        print(f"text embeddings are not kept in {path.parent} ({error})", file=sys.stderr)
