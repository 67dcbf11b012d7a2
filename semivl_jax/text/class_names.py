"""Class names, definitions and palettes of the four public data sets, as data.

One JSON file per data set stands beside this module: `classes` in the order of the label values,
`definitions` (the concepts that a class stands for; its name where the method defines none, METHOD
section 2) and `palette` (RGB per class).
"""

from __future__ import annotations

import json
from pathlib import Path

from semivl_jax.data.dataset_info import DatasetInfo

DATASETS = ("voc", "coco", "ade20k", "cityscapes")


def dataset_info(name: str) -> DatasetInfo:
    """Classes and words of a public data set.

    Raises:
      ValueError: a name that is not in `DATASETS`.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is unknown; choose one of {', '.join(DATASETS)}")
    path = Path(__file__).with_name(f"{name}.json")
    return DatasetInfo.from_json(json.loads(path.read_text(encoding="utf8")))
