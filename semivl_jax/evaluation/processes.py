"""What the processes of a run found, each in its share of the images, put together exactly.

Every process must call these functions, in the same order; with one process they change nothing.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int64


def summed(counts: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """Sum over all processes, of counts of the same shape that are 0 or more."""
    if jax.process_count() == 1:
        return counts
    # As pairs of 32-bit words: without x64, arrays of 64 bits would be cut on the way.
    words = np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)
    low, high = multihost_utils.process_allgather(words).astype(np.int64).sum(axis=0)
    return low + (high << 32)


def gathered(value: Any) -> list[Any]:
    """A value of every process, in their order; anything that JSON can hold, numbers exactly."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.pad(text, (0, lengths.max() - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
