"""COCO 2017, objects and background."""

from tfds_builders.coco_semi.builder import CocoInstances, CocoSemi

__all__ = ["CocoInstances", "CocoSemi"]
