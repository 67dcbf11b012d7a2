"""CLIP's byte-pair tokeniser.

In: sentences. Out: int32[k, context_length] token ids: start (49406), the words' ids, end (49407, the
largest id of a row), zeros. Text is repaired and cleaned as CLIP does before the pairs are looked up
(METHOD section 2): ftfy, HTML entities resolved twice, white space folded, lower case.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache

import ftfy
import instant_clip_tokenizer
import numpy as np
from jaxtyping import Int32

CONTEXT_LENGTH = 77

# Markers written out in a text are tokens of their own, unless punctuation runs into them.
_MARKER_RUN = re.compile(r"(?<![^\w\s])(?<!_)((?:<\|startoftext\|>|<\|endoftext\|>)+)")
_START = "<|startoftext|>"
_END = "<|endoftext|>"


def clean(text: str) -> str:
    """Repair the encoding, resolve HTML entities, fold white space, lower the case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def encode(text: str) -> list[int]:
    """Ids of one sentence without start, end, padding or limit."""
    words = _vocabulary()
    markers = {_START: words.start_of_text(), _END: words.end_of_text()}
    ids: list[int] = []
    for i, part in enumerate(_MARKER_RUN.split(clean(text))):
        if i % 2:  # a run of markers between two stretches of text
            ids += [markers[f"{marker}|>"] for marker in part.split("|>")[:-1]]
        else:
            ids += words.encode(part)
    return ids


def tokenize(
    texts: Sequence[str], *, context_length: int = CONTEXT_LENGTH, truncate: bool = True
) -> Int32[np.ndarray, "k {context_length}"]:
    """Ids of sentences, one row each.

    A sentence that does not fit loses its last words (the end token stays), or, with `truncate` off,
    raises ValueError.
    """
    words = _vocabulary()
    out = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(out, texts, strict=True):
        ids = [words.start_of_text(), *encode(text), words.end_of_text()]
        if len(ids) > context_length and not truncate:
            raise ValueError(
                f"{text!r} has {len(ids)} tokens with its start and end, the text tower reads "
                f"{context_length}: shorten the text or allow it to be truncated"
            )
        ids = ids if len(ids) <= context_length else [*ids[: context_length - 1], ids[-1]]
        row[: len(ids)] = ids
    return out


@cache
def _vocabulary() -> instant_clip_tokenizer.Tokenizer:
    return instant_clip_tokenizer.Tokenizer()
