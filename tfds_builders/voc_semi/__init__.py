"""Pascal VOC 2012 with the augmented training masks."""

from tfds_builders.voc_semi.builder import VocSemi

__all__ = ["VocSemi"]
