"""TFDS builders; each sub-package holds one data set."""
