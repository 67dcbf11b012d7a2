"""Classes of a data set: names, concepts that describe them, colours.

A `DatasetInfo` is plain data (names, a uint8 [n, 3] palette, concepts per class). Builders store it as
JSON beside the records, so that a prepared directory is self-describing.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

IGNORE_INDEX = 255


def distinct_palette(num_classes: int) -> np.ndarray:
    """Colours, uint8 [num_classes, 3], that neighbouring class numbers do not share.

    Hues advance by the golden ratio, so that consecutive classes are far apart on the colour circle;
    lightness and saturation alternate so that later classes differ from earlier ones.
    """
    golden = (5**0.5 - 1) / 2
    colours = []
    for index in range(num_classes):
        lightness = (0.55, 0.38, 0.72)[index % 3]
        saturation = (0.85, 0.6)[index // 3 % 2]
        colours.append(colorsys.hls_to_rgb((0.02 + index * golden) % 1, lightness, saturation))
    return np.round(np.asarray(colours, np.float64).reshape(-1, 3) * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DatasetInfo:
    """Classes of a data set.

    Attributes:
      name: what the data set is called in messages and file names, or where its classes were given.
      classes: one name per label value 0 … n-1.
      definitions: for every class the concepts that describe it, at least one; by default its name.
      palette: uint8 [n, 3], the colour of every class; by default `distinct_palette`.
      ignore: the label value that does not count in losses and metrics.

    Raises:
      ValueError: no class or more than 255, a repeated or empty name, an empty concept, a palette or
        definitions whose length is not the number of classes.
    """

    name: str
    classes: tuple[str, ...]
    definitions: tuple[tuple[str, ...], ...] = ()
    palette: np.ndarray | None = None
    ignore: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        classes = tuple(self.classes)
        definitions = tuple(tuple(d) for d in self.definitions) or tuple((c,) for c in classes)
        palette = distinct_palette(len(classes)) if self.palette is None else self.palette
        palette = np.asarray(palette, np.uint8)
        problem = _problem(classes, definitions, palette)
        if problem:
            raise ValueError(f"{self.name} {problem}")
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "definitions", definitions)
        object.__setattr__(self, "palette", palette)

    @property
    def num_classes(self) -> int:
        """Number of classes, n."""
        return len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """The same facts as JSON types."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "definitions": [list(d) for d in self.definitions],
            "palette": self.palette.tolist(),
            "ignore": self.ignore,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> DatasetInfo:
        """Inverse of `to_json`; a missing field is a KeyError."""
        return cls(
            name=facts["name"],
            classes=tuple(facts["classes"]),
            definitions=tuple(tuple(d) for d in facts["definitions"]),
            palette=np.asarray(facts["palette"], np.uint8),
            ignore=facts["ignore"],
        )


def _problem(
    classes: tuple[str, ...], definitions: tuple[tuple[str, ...], ...], palette: np.ndarray
) -> str:
    """What is wrong with the fields of a `DatasetInfo`, and the remedy; empty: nothing."""
    if not classes:
        return "names no class; give a file with one name per line, or a,b,c"
    if len(classes) > IGNORE_INDEX:
        return f"names {len(classes)} classes, a mask can hold {IGNORE_INDEX}; remove some"
    if len(definitions) != len(classes):
        return f"has {len(definitions)} definitions for {len(classes)} classes; give one per class"
    if palette.shape != (len(classes), 3):
        return (
            f"has a palette of the shape {palette.shape}; give one RGB colour per class, "
            f"({len(classes)}, 3)"
        )
    for position, (name, concepts) in enumerate(zip(classes, definitions, strict=True)):
        if not name.strip():
            return f"gives class {position} no name; give it one, or remove a comma"
        if name in classes[:position]:
            return (
                f"names the class {name!r} twice (values {classes.index(name)} and {position}); "
                "rename or remove one of them"
            )
        if not concepts or not all(concept.strip() for concept in concepts):
            return f"gives class {name!r} an empty concept; name or remove it"
    return ""
