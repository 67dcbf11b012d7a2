"""Shapes: drawn pictures of toys, animals and things, a small segmentation problem with words."""
