"""The builder of a data set by its name in `config.data.dataset`; needs no JAX."""

from __future__ import annotations

from tfds_builders.ade20k_semi import Ade20kSemi
from tfds_builders.cityscapes_semi import CityscapesSemi
from tfds_builders.coco_semi import CocoInstances, CocoSemi
from tfds_builders.published import PublishedBuilder
from tfds_builders.voc_semi import VocSemi

_BUILDERS = {
    builder.DATASET: builder
    for builder in (VocSemi, CocoSemi, CocoInstances, Ade20kSemi, CityscapesSemi)
}

PUBLISHED = tuple(_BUILDERS)
"""Names of the public data sets."""


def published_builder(dataset: str) -> type[PublishedBuilder]:
    """The builder class of a public data set; ValueError for another name."""
    if dataset not in _BUILDERS:
        raise ValueError(f"data set {dataset!r} is unknown; choose one of {', '.join(PUBLISHED)}")
    return _BUILDERS[dataset]
