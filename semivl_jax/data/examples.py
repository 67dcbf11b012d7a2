"""Validation images at their own sizes, in order, decoded a little ahead in threads."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from semivl_jax.data import images
from semivl_jax.data.source import Source


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """A photo, uint8 RGB [h, w, 3], and its label, uint8 [h, w], 255 = not evaluated."""

    id: str
    image: np.ndarray
    label: np.ndarray


class EvalExamples:
    """The labelled images of a source, as often as they are asked for.

    With several processes, process p gets the images p, p + P, p + 2P, … of P.
    """

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
        """Ids in the order in which the examples come."""
        return tuple(self._source.ids[index] for index in self._indices)

    def __getitem__(self, position: int) -> EvalExample:
        """Load one example.

        Raises:
          ValueError: an image or label that cannot be used; the message names it.
        """
        record = self._source[self._indices[position]]
        try:
            image, label = images.decode_image(record.image), images.decode_label(record.label)
            images.check_labels(label, num_classes=self._source.info.num_classes)
        except Exception as error:
            raise ValueError(
                f"{self._source.part} image {record.id!r} of {self._source.directory} cannot be "
                f"used: {error}"
            ) from error
        return EvalExample(record.id, image, label)

    def __iter__(self) -> Iterator[EvalExample]:
        workers = min(8, os.cpu_count() or 1)
        ahead: collections.deque[Future[EvalExample]] = collections.deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for position in range(len(self)):
                    ahead.append(pool.submit(self.__getitem__, position))
                    if len(ahead) > 2 * workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
