"""Random access to a prepared data set.

In: a directory that a builder of `tfds_builders` prepared (ArrayRecord). Out: `Record`s by index, with
images and labels as the encoded bytes on disk, or decoded; and without reading any of them the ids, the
classes and which images have a label. Needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from semivl_jax.data import images, label_files
from semivl_jax.data.dataset_info import DatasetInfo


@dataclasses.dataclass(frozen=True)
class Record:
    """One image: encoded bytes of it and of its label (None = unlabelled)."""

    id: str
    image: bytes
    label: bytes | None


class Source:
    """The records of one part of a data set.

    Cheap to pickle: worker processes receive only paths and ids, and open the files when they read the first
    record.
    """

    def __init__(self, directory: Path, part: str, facts: dict[str, Any]) -> None:
        self.directory = directory
        self.part = part
        self.info = DatasetInfo.from_json(facts)
        self.ids: tuple[str, ...] = tuple(facts["ids"][part])
        # Per image: {label value: pixels}, or None where there is no label.
        self.pixels: tuple[dict[int, int] | None, ...] = tuple(
            None if counts is None else {int(value): n for value, n in counts.items()}
            for counts in facts["pixels"][part]
        )
        # Per image: rows and columns.
        self.sizes: tuple[tuple[int, int], ...] = tuple(
            (rows, columns) for rows, columns in facts["sizes"][part]
        )
        # What the builder counted (`FolderSemi`); files of earlier versions have none.
        self.notes: dict[str, int] = facts.get("notes", {}).get(part, {})
        self._records: Any = None
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        """Read one record; safe to call from several threads.

        Raises:
          IndexError: no such index.
          ValueError: the records are not those of the metadata.
        """
        if not 0 <= index < len(self.ids):
            raise IndexError(f"record {index} of {len(self.ids)} in {self.directory}")
        raw = self._open()[index]
        name = raw["id"].decode()
        if name != self.ids[index]:
            raise ValueError(
                f"{self.directory}: record {index} of {self.part} is {name!r} instead of "
                f"{self.ids[index]!r}; delete the directory and prepare the data again"
            )
        return Record(id=name, image=raw["image"], label=raw["label"] or None)

    def decode(self, index: int, *, label: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """One image, uint8 RGB [h, w, 3], and with `label` its label, uint8 [h, w].

        Raises:
          ValueError: an image or label that cannot be used; the message names it.
        """
        try:
            record = self[index]
            image = images.decode_image(record.image)
            if not label:
                return image, None
            if record.label is None:
                raise ValueError("it has no label; add the mask")
            values = label_files.decode_label(record.label)
            images.check_pair(image, values)
            images.check_labels(values, num_classes=self.info.num_classes)
            return image, values
        except Exception as error:  # as one that can be pickled
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            part = "training" if self.part == "train" else self.part
            raise ValueError(
                f"{part} image {self.ids[index]!r} of {self.directory} cannot be used: {reason}"
            ) from error

    def labels_exist(self) -> np.ndarray:
        """Which images have a label, bool [len(self)]."""
        return np.asarray([counts is not None for counts in self.pixels], bool)

    def count_classes(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of each label value in these images, and images that show it; int64 [256] each."""
        pixels, images = np.zeros((2, 256), np.int64)
        for index in indices:
            for value, count in (self.pixels[index] or {}).items():
                pixels[value] += count
                images[value] += 1
        return pixels, images

    def _open(self) -> Any:
        if self._records is None:
            with self._opening:
                if self._records is None:
                    self._records = _open_records(self.directory, self.part, len(self.ids))
        return self._records

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # Open files and locks stay in this process.
        state["_records"] = state["_opening"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opening = threading.Lock()


def open_source(directory: str | os.PathLike[str], part: str) -> Source:
    """Open one part ("train" or "validation") of a prepared data set.

    Raises:
      ValueError: the directory is no prepared data set, or has no such part.
    """
    directory = Path(directory)
    path = directory / "metadata.json"
    if not path.is_file():
        raise ValueError(f"{directory} is no prepared data set; prepare the data first")
    facts = json.loads(path.read_text())
    if part not in facts["ids"]:
        raise ValueError(f"{directory} has no part {part!r}; it has {sorted(facts['ids'])}")
    return Source(directory, part, facts)


def _open_records(directory: Path, part: str, expected: int) -> Any:
    import tensorflow_datasets as tfds  # processes that only read ids do not need it

    raw = tfds.decode.SkipDecoding()
    builder = tfds.builder_from_directory(directory)
    records = builder.as_data_source(split=part, decoders={"image": raw, "label": raw})
    if len(records) != expected:
        raise ValueError(
            f"{directory} holds {len(records)} records of {part} but {expected} ids; delete the "
            "directory and prepare the data again"
        )
    return records
