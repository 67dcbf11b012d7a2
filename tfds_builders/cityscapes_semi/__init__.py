"""Cityscapes, 19 classes."""

from tfds_builders.cityscapes_semi.builder import CityscapesSemi

__all__ = ["CityscapesSemi"]
