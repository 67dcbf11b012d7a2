"""Which image stands at which place of the endless training stream.

Everything is a pure function of the seed and the global place i = step · batch + position in the batch, so
the stream is the same for any number of processes and workers, and resuming needs nothing but the step.

An epoch is one pass over the unlabelled images in an order drawn for that epoch; batches may straddle
epochs, so no image is left out or repeated. The labelled list is repeated to the length of the unlabelled
one and shuffled by itself every epoch (METHOD 6). Where there are more labelled than unlabelled images
the labelled stream has passes of its own, so that every labelled image is used.
"""

from __future__ import annotations

import dataclasses
import enum
import functools

import numpy as np


class Stream(enum.IntEnum):
    """Sources of randomness that must not share random numbers."""

    LABELLED_ORDER = 0
    UNLABELLED_ORDER = 1
    LABELLED_GEOMETRY = 2
    UNLABELLED_GEOMETRY = 3
    PARTNER_GEOMETRY = 4


def generator(seed: int, stream: Stream, index: int) -> np.random.Generator:
    """Independent random numbers for one index of one stream; `index` is an epoch or a place."""
    return np.random.Generator(_bits(seed, stream, index))


def permutation(seed: int, stream: Stream, epoch: int, length: int) -> np.ndarray:
    """A random order of 0 … length-1, int64 [length].

    Sorts raw Philox output, which unlike NumPy's own `permutation` is promised to stay the same in
    all NumPy versions: a run resumed after an update continues its epoch.
    """
    return np.argsort(_bits(seed, stream, epoch).random_raw(length), kind="stable")


def _bits(seed: int, stream: Stream, index: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=(int(stream), index)))


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """The global order of labelled and unlabelled images.

    Attributes:
      num_labelled: length of the labelled list, at least 1.
      num_unlabelled: length of the unlabelled list; 0 = labelled images only.
      seed: of both orders.
    """

    num_labelled: int
    num_unlabelled: int
    seed: int

    @property
    def epoch_length(self) -> int:
        """Images in an epoch: unlabelled ones, or labelled ones if there are no others."""
        return self.num_unlabelled or self.num_labelled

    def labelled(self, place: int) -> int:
        """Position in the labelled list of the image at a global place."""
        length = max(self.epoch_length, self.num_labelled)
        epoch, offset = divmod(place, length)
        order = _cached_permutation(self.seed, Stream.LABELLED_ORDER, epoch, length)
        return int(order[offset]) % self.num_labelled

    def unlabelled(self, place: int) -> int:
        """Position in the unlabelled list of the image at a global place."""
        epoch, offset = divmod(place, self.num_unlabelled)
        order = _cached_permutation(self.seed, Stream.UNLABELLED_ORDER, epoch, self.num_unlabelled)
        return int(order[offset])


# A batch may straddle two epochs and workers run a little ahead: few orders are in use at a time.
_cached_permutation = functools.lru_cache(maxsize=8)(permutation)


@dataclasses.dataclass(frozen=True)
class Share:
    """The contiguous places of every global batch that one process loads."""

    batch: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index {self.process_index} is outside 0 … {self.process_count - 1}; give "
                "jax.process_index() and jax.process_count()"
            )
        if self.batch < 1 or self.batch % self.process_count:
            raise ValueError(
                f"config.batch={self.batch} cannot be divided among {self.process_count} processes; "
                f"choose a multiple of {self.process_count}"
            )

    @property
    def size(self) -> int:
        """Images of each kind that this process loads per step."""
        return self.batch // self.process_count

    def place(self, local: int) -> int:
        """Global place of the `local`-th image that this process loads, counted from step 0."""
        step, position = divmod(local, self.size)
        return step * self.batch + self.process_index * self.size + position
