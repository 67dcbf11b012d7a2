"""Class names and definitions: of the four public data sets, and as a user gives them. Needs no JAX.

Each public data set has a JSON file beside this module: `classes` in the order of the label values,
`definitions` (the concepts of a class; its name where the method defines none, docs/semivl.md 2) and
`palette` (RGB per class).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from semivl_jax import utils
from semivl_jax.data.class_files import parse_classes
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.data.text_files import read_lines

DATASETS = ("voc", "coco", "ade20k", "cityscapes")

MODES = ("name", "concept", "concept_average")
"""What text embeddings are made from; see `class_text.embed_classes`."""

Classes = str | Path | Sequence[str] | Mapping[str, Sequence[str]]
"""Class names: a file, "a, b, c", a list of names, or names with their concepts."""


def dataset_info(name: str) -> DatasetInfo:
    """Classes of a public data set.

    Raises:
      ValueError: a name that is not in `DATASETS`.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is unknown; choose one of {', '.join(DATASETS)}")
    path = Path(__file__).with_name(f"{name}.json")
    return DatasetInfo.from_json(json.loads(path.read_text(encoding="utf8")))


def read_classes(classes: Classes, *, where: str = "--classes") -> DatasetInfo:
    """Names and concepts that a user gives, in their order.

    A text is the path of a file (one class per line, `name` or `name: concept, concept`) if there is such a
    file, or else names between commas; a mapping gives every name its concepts.

    Raises:
      ValueError: no name, a name twice, an empty name or concept, more than 255 names, a file that is no
        text; `where` names the option in the message.
    """
    definitions: Sequence[Sequence[str]] = ()
    if isinstance(classes, str | Path):
        text = str(classes)
        path = utils.user_path(text)
        if _is_file(path):
            where = str(path)
            parsed = parse_classes(read_lines(path), where=where)
            names, definitions = parsed.names, parsed.definitions
        elif isinstance(classes, Path) or (
            "," not in text and (path.suffix == ".txt" or "/" in text)
        ):
            raise ValueError(f"{where}: {text} is no file; correct the path, or give names: a,b,c")
        else:
            names = text.split(",")
    else:
        names = list(classes)
        definitions = tuple(classes.values()) if isinstance(classes, Mapping) else ()
    return DatasetInfo(
        name=where,
        classes=tuple(" ".join(str(name).split()) for name in names),
        definitions=tuple(tuple(concepts) for concepts in definitions),
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or with characters that none has
        return False
