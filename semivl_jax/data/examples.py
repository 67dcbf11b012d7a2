"""Validation images at their own sizes, in order, decoded a little ahead in threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from semivl_jax import utils
from semivl_jax.data.source import Source


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """A photo, uint8 RGB [h, w, 3], and its label, uint8 [h, w], 255 = not evaluated."""

    id: str
    image: np.ndarray
    label: np.ndarray


class EvalExamples:
    """The labelled images of a source; of P processes, process p has the images p, p + P, p + 2P, …"""

    def __init__(self, source: Source, *, process_index: int = 0, process_count: int = 1) -> None:
        """Choose the images.

        Raises:
          ValueError: no image has a label.
        """
        labelled = np.flatnonzero(source.labels_exist())
        if not labelled.size:
            raise ValueError(
                f"{source.directory}: no {source.part} image has a label; add masks to evaluate"
            )
        self._source = source
        self._indices = [int(i) for i in labelled[process_index::process_count]]

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the examples in their order."""
        return tuple(self._source.ids[index] for index in self._indices)

    def __getitem__(self, position: int) -> EvalExample:
        """Load one example; ValueError (with its name) if it cannot be used."""
        index = self._indices[position]
        return EvalExample(self._source.ids[index], *self._source.decode(index, label=True))

    def __iter__(self) -> Iterator[EvalExample]:
        return utils.ordered_map(self.__getitem__, range(len(self)))
