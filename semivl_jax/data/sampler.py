"""The order of images in the endless training stream, and the random numbers of every crop.

All is a pure function of the seed and the global index i = step · batch + position in the batch, so the
stream is the same for any number of processes and workers, and resuming needs nothing but the step.

A stream passes over its list again and again, every time in another order; batches may straddle passes, so no
image is left out or repeated. The labelled list is repeated to the length of the unlabelled one and shuffled
by itself (docs/semivl.md 6); where there are more labelled than unlabelled images it has passes of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

# Purposes whose random numbers must stay what they are: resumed runs continue their stream.
_FIXED = {
    "labelled/order": 0,
    "unlabelled/order": 1,
    "labelled/geometry": 2,
    "unlabelled/geometry": 3,
    "unlabelled.1/geometry": 4,
}


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Independent random numbers for an index (a pass or a global index) of a purpose ("NAME/geometry")."""
    return np.random.Generator(_bits(seed, purpose, index))


# A batch may straddle two passes and workers run a little ahead: few orders are in use at a time.
@functools.lru_cache(maxsize=16)
def permutation(seed: int, purpose: str, index: int, length: int) -> np.ndarray:
    """A random order of 0 … length-1, int64 [length].

    Sorts raw Philox output, which unlike NumPy's own `permutation` is the same in all NumPy versions: a run
    resumed after an update continues its pass.
    """
    return np.argsort(_bits(seed, purpose, index).random_raw(length), kind="stable")


def _bits(seed: int, purpose: str, index: int) -> np.random.Philox:
    key = (_purpose_id(purpose), index)
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=key))


def _purpose_id(purpose: str) -> int:
    """A number of 32 bits, the same in every process and version."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=4).digest()
    return _FIXED.get(purpose, int.from_bytes(digest))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The order of one stream.

    Attributes:
      name: of the stream.
      size: images of its list, at least 1.
      seed: of the order.
      length: of one pass, at least `size`; the list is repeated to it. 0: as `size`.
    """

    name: str
    size: int
    seed: int
    length: int = 0

    def __call__(self, global_index: int) -> int:
        """Position in the list of the image at a global index."""
        length = self.length or self.size
        number, offset = divmod(global_index, length)
        order = permutation(self.seed, f"{self.name}/order", number, length)
        return int(order[offset]) % self.size


@dataclasses.dataclass(frozen=True)
class Shard:
    """The contiguous part of every global batch that one process loads."""

    batch: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.process_count:
            raise ValueError(
                f"config.batch={self.batch} cannot be divided among {self.process_count} processes; "
                f"choose a multiple of {self.process_count}"
            )

    @property
    def size(self) -> int:
        """Images of each stream that this process loads per step."""
        return self.batch // self.process_count

    def global_index(self, local: int) -> int:
        """Global index of the `local`-th image that this process loads, counted from step 0."""
        step, position = divmod(local, self.size)
        return step * self.batch + self.process_index * self.size + position
