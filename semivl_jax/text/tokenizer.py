"""CLIP's byte-pair tokenizer.

In: sentences. Out: int32 [k, context_length] token ids: start (49406), the tokens of the text, end (49407,
the largest id of a row), zeros. Text is cleaned as CLIP does (docs/semivl.md 2): ftfy, HTML entities resolved
twice, white space folded, lower case.

The merges are those of OpenAI's CLIP (`clip_merges.txt.gz`, source and licence in `clip_merges.LICENSE`). Ids
count 256 bytes, the same 256 bytes at the end of a word, the merges in their order, start and end.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models, pre_tokenizers

CONTEXT_LENGTH = 77

_MERGES = Path(__file__).with_name("clip_merges.txt.gz")
_MARKERS = ("<|startoftext|>", "<|endoftext|>")  # also tokens where they are written in a text
_WORD_END = "</w>"
_SPLIT = (  # markers, contractions (in CLIP case is ignored: ſ is an s), letters, one digit, the rest
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def clean(text: str) -> str:
    """Repair the encoding, resolve HTML entities, fold white space, lower the case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def encode(text: str) -> list[int]:
    """Ids of one sentence without start, end, padding or limit."""
    split, byte_pairs, markers = _parts()
    ids: list[int] = []
    for piece, _ in split.pre_tokenize_str(clean(text)):
        if piece in markers:
            ids.append(markers[piece])
        else:
            ids += [token.id for token in byte_pairs.tokenize(piece)]
    return ids


def tokenize(
    texts: Sequence[str], *, context_length: int = CONTEXT_LENGTH, truncate: bool = True
) -> Int32[np.ndarray, "k {context_length}"]:
    """Ids of sentences, one row each.

    A sentence that does not fit loses its last tokens (the end token stays).

    Raises:
      ValueError: a sentence does not fit and `truncate` is off.
    """
    start, end = _parts()[2].values()
    out = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(out, texts, strict=True):
        ids = [start, *encode(text), end]
        if len(ids) > context_length and not truncate:
            raise ValueError(
                f"{text!r} has {len(ids)} tokens with its start and end, the text tower reads "
                f"{context_length}: shorten the text or allow it to be truncated"
            )
        ids = ids if len(ids) <= context_length else [*ids[: context_length - 1], end]
        row[: len(ids)] = ids
    return out


@cache
def _parts() -> tuple[pre_tokenizers.PreTokenizer, models.Model, dict[str, int]]:
    """Text to pieces (bytes written as letters), pieces to ids, ids of the markers."""
    merges = [
        tuple(line.split()) for line in gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    ]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}{_WORD_END}" for letter in letters)]
    tokens += ["".join(merge) for merge in merges]
    ids = {token: number for number, token in enumerate([*tokens, *_MARKERS])}
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    byte_pairs = models.BPE(vocab=ids, merges=merges, end_of_word_suffix=_WORD_END)
    return split, byte_pairs, {marker: ids[marker] for marker in _MARKERS}


def _byte_letters() -> list[str]:
    """The letter of each byte: visible Latin-1 characters for themselves, then U+0100 …"""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(visible)
    return [chr(code) for code in (*visible, *range(0x100, 0x100 + others))]
