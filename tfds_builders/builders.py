"""The builder of a data set by its name in `config.data.dataset`; needs no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tfds_builders.ade20k_semi import Ade20kSemi
from tfds_builders.cityscapes_semi import CityscapesSemi
from tfds_builders.coco_semi import CocoInstances, CocoSemi
from tfds_builders.published import PublishedBuilder
from tfds_builders.voc_semi import VocSemi

_PUBLISHED = (VocSemi, CocoSemi, CocoInstances, Ade20kSemi, CityscapesSemi)

PUBLISHED = tuple(builder.DATASET for builder in _PUBLISHED)
"""Names of the public data sets."""


def published_builder(
    dataset: str, *, data_dir: str | Path, manual_dir: str | Path = ""
) -> PublishedBuilder:
    """Builder of a public data set; ValueError for another name."""
    for builder in _PUBLISHED:
        if dataset == builder.DATASET:
            return builder(data_dir=data_dir, manual_dir=manual_dir)
    raise ValueError(f"data set {dataset!r} is unknown; choose one of {', '.join(PUBLISHED)}")


def published_sizes(dataset: str) -> Mapping[str, int]:
    """Images of every part of a public data set; ValueError for another name."""
    for builder in _PUBLISHED:
        if dataset == builder.DATASET:
            return builder.SIZES
    raise ValueError(f"data set {dataset!r} is unknown; choose one of {', '.join(PUBLISHED)}")
