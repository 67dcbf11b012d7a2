"""SigLIP 2's tokenizer: Gemma's vocabulary, lower case.

In: sentences and the contents of the published tokenizer.json. Out: int32 [k, context_length] token ids: the
text, the end token, padding. Source: arXiv 2502.14786 and the published preprocessing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32

_END, _PAD = "<eos>", "<pad>"


def tokenize(
    texts: Sequence[str], tokenizer: bytes | None, *, context_length: int, vocab_size: int
) -> Int32[np.ndarray, "k {context_length}"]:
    """Ids of sentences, one row each; a sentence that does not fit loses its last tokens.

    Raises:
      ValueError: there is no tokenizer, or it is not that of a text tower of so many tokens.
    """
    if tokenizer is None:
        raise ValueError(
            "the SigLIP weights hold no tokenizer, without which no class can be named; convert them again "
            "with --tokenizer=tokenizer.json, a file of the published model"
        )
    parsed = parse(tokenizer)
    end, pad = (parsed.token_to_id(token) for token in (_END, _PAD))
    if parsed.get_vocab_size() > vocab_size:
        raise ValueError(
            f"the tokenizer has {parsed.get_vocab_size()} tokens, the text tower {vocab_size}; convert the "
            "weights again with the tokenizer.json of the same model"
        )
    out = np.full((len(texts), context_length), pad, np.int32)
    rows = parsed.encode_batch([text.lower() for text in texts], add_special_tokens=False)
    for row, found in zip(out, rows, strict=True):
        ids = [*found.ids[: context_length - 1], end]
        row[: len(ids)] = ids
    return out


@functools.lru_cache(maxsize=2)
def parse(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer in a file.

    Raises:
      ValueError: the file is damaged, or of another kind.
    """
    try:
        parsed = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises its base class
        raise ValueError(
            f"the tokenizer cannot be read ({error}); name the tokenizer.json of the published model"
        ) from error
    missing = [token for token in (_END, _PAD) if parsed.token_to_id(token) is None]
    if missing:
        raise ValueError(
            f"the tokenizer has no token {' and no '.join(missing)}, so it is not SigLIP 2's; name the "
            "tokenizer.json of the published model"
        )
    parsed.no_padding()
    parsed.no_truncation()
    return parsed
