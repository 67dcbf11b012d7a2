"""The builders of the public data sets by their names in `config.data.dataset`; needs no JAX."""

from __future__ import annotations

from tfds_builders.ade20k_semi import Ade20kSemi
from tfds_builders.cityscapes_semi import CityscapesSemi
from tfds_builders.coco_semi import CocoInstances, CocoSemi
from tfds_builders.published import PublishedBuilder
from tfds_builders.voc_semi import VocSemi

PUBLISHED: dict[str, type[PublishedBuilder]] = {
    builder.DATASET: builder
    for builder in (VocSemi, CocoSemi, CocoInstances, Ade20kSemi, CityscapesSemi)
}
