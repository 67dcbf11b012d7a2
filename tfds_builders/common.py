"""What all builders share: the features of a record, self-describing metadata, safe preparation.

A record holds `id` (text), `image` (encoded bytes, PNG or JPEG as it came), `label` (encoded
one-channel PNG whose grey levels are class indices, 255 = ignore; **empty bytes = no label**) and
`captions` (texts, often none). Splits are "train" and "validation". Records keep the order in which
the builder yields them, and the ids in that order (and which of them have a label) are stored in the
metadata with names, palette and definitions, so selecting images reads no image.

Nothing here decodes or encodes an image, therefore neither preparing nor reading needs TensorFlow.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from semivl_jax.data.catalog import DatasetInfo

PARTS = ("train", "validation")

# Larger shards only matter for copying; reading is by index in any case.
_SHARD_BYTES = 512 * 2**20


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image on its way into a data set: encoded bytes or a path to them; label None = unlabelled."""

    id: str
    image: bytes | os.PathLike
    label: bytes | os.PathLike | None = None
    captions: tuple[str, ...] = ()


def features() -> tfds.features.FeaturesDict:
    """The feature specification of every builder in this package."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(doc="file stem or other unique name"),
            "image": tfds.features.Image(doc="encoded as it came, PNG or JPEG"),
            "label": tfds.features.Image(
                shape=(None, None, 1),
                encoding_format="png",
                use_colormap=True,
                doc="class index per pixel, 255 = ignore; empty bytes where there is no label",
            ),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
    )


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of all builders.

    A data set implements `about` (classes and words) and `_split_generators`, which returns
    `{"train": self.write("train", samples), "validation": self.write("validation", samples)}` with
    iterables of `Sample`. Ids must be unique within a part.
    """

    @abc.abstractmethod
    def about(self) -> DatasetInfo:
        """Names, palette and definitions of the classes."""

    @property
    def description(self) -> str:
        """One paragraph for the prepared directory; by default the class's docstring."""
        return (type(self).__doc__ or self.name).strip()

    @property
    def homepage(self) -> str | None:
        """Where the data come from, if they have a site."""
        return None

    @property
    def citation(self) -> str | None:
        """BibTeX of the data set, if it has one."""
        return None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            features=features(),
            homepage=self.homepage,
            citation=self.citation,
            metadata=tfds.core.MetadataDict(self.about().to_json() | {"ids": {}, "unlabelled": {}}),
            disable_shuffling=True,  # record i is the i-th sample: the id list stays valid
        )

    def write(self, part: str, samples: Iterable[Sample]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Turn samples into records and note their ids; for use in `_split_generators`.

        Raises (while the records are drawn):
          ValueError: an id that occurs twice in the part.
        """
        if part not in PARTS:
            raise ValueError(f"part {part!r} is unknown; use one of {PARTS}")
        ids: list[str] = []
        unlabelled: list[str] = []
        seen: set[str] = set()
        for index, sample in enumerate(samples):
            if sample.id in seen:
                raise ValueError(
                    f"{self.name}: the id {sample.id!r} occurs twice in {part}; rename one image"
                )
            seen.add(sample.id)
            ids.append(sample.id)
            if sample.label is None:
                unlabelled.append(sample.id)
            yield (
                index,
                {
                    "id": sample.id,
                    "image": sample.image,
                    "label": b"" if sample.label is None else sample.label,
                    "captions": list(sample.captions),
                },
            )
        self.info.metadata["ids"][part] = ids
        self.info.metadata["unlabelled"][part] = unlabelled

    def _generate_examples(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("builders return self.write(...) from _split_generators")


def prepare(builder: tfds.core.DatasetBuilder) -> Path:
    """Prepare a data set unless it is there already; return its directory.

    Records are written to a temporary directory that is renamed when complete: an interrupted
    preparation leaves nothing that could be taken for the data set, and is started again.

    Raises:
      ValueError: the directory exists but was not completed (copied in part, or edited).
    """
    directory = Path(builder.data_path)
    if not directory.exists():
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(max_shard_size=_SHARD_BYTES),
        )
    check_complete(directory)
    return directory


def check_complete(directory: Path) -> None:
    """Say what is missing in a prepared directory.

    Raises:
      ValueError: a missing description, metadata file or record shard, with the remedy.
    """
    for needed in ("dataset_info.json", "features.json", "metadata.json"):
        if not (directory / needed).is_file():
            raise ValueError(
                f"{directory} is not a complete data set: {needed} is missing; delete the "
                "directory and prepare it again"
            )
    info = tfds.builder_from_directory(directory).info
    for split in info.splits.values():
        for shard in split.filepaths:
            if not Path(shard).is_file():
                raise ValueError(
                    f"{directory} is not a complete data set: the record file {Path(shard).name} "
                    "is missing; delete the directory and prepare it again"
                )
