"""Your own images: a folder with `images/`, `masks/` and `classes.txt`."""

from tfds_builders.folder_semi.builder import FolderSemi

__all__ = ["FolderSemi"]
