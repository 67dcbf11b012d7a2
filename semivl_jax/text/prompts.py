"""The sentence around a class name.

Names and definitions themselves belong to the data sets (`data.catalog.DatasetInfo`): a definition lists
the concepts that a class stands for, for example vehicle = car, truck, bus (METHOD section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

TEMPLATE = "a photo of a {}"
"""The one prompt template of the method."""


def prompts(names: Sequence[str]) -> list[str]:
    """The sentence for each name or concept; ValueError for an empty one."""
    for name in names:
        if not name.strip():
            raise ValueError(f"class name or concept {name!r} is empty; give it at least one word")
    return [TEMPLATE.format(name) for name in names]
