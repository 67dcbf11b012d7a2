"""ADE20K, the 150 classes of the scene parsing challenge."""

from tfds_builders.ade20k_semi.builder import Ade20kSemi

__all__ = ["Ade20kSemi"]
