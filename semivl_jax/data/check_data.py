"""What is wrong with data before the first step: errors where nothing right can be learnt, and notes.

In: the parts of a prepared data set and the split. Out: sentences for the log. Only the counts in the
metadata are read, no image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.data.source import Source
from semivl_jax.data.splits import Split

_BLACK_AND_WHITE = frozenset((0, 255))
_RARE = 0.01
"""Share of the labelled pixels below which a class is called rare."""


def check(train: Source, validation: Source, split: Split) -> list[str]:
    """Notes on the data, a sentence each.

    Raises:
      ValueError: one class; masks that show one class or none; values that seem to count from 1, of which
        the last class is dropped; validation without a pixel that counts.
    """
    info = train.info
    every, labelled = _count(train.pixels), _count(train.pixels[i] for i in split.labelled)
    held_out = _count(validation.pixels)
    if info.num_classes == 1:
        raise ValueError(
            f"{info.name} has the one class {info.classes[0]!r}, so there is nothing to tell apart; name a "
            "second one for everything else, such as background"
        )
    both = every + held_out
    _check_counting(info, both, train.notes, validation.notes)
    _check_classes(info, every, labelled)
    if not _valid(info, held_out):
        raise ValueError(
            f"{info.name}: no validation image has a pixel that counts (all are {info.ignore}); correct the "
            "masks, or choose other validation images"
        )
    return [
        *_describe_notes(train, validation, masked=both.total()),
        *_describe_classes(info, both, labelled, held_out),
    ]


def describe_rare(train: Source, split: Split) -> list[str]:
    """A sentence about labelled classes that few pixels show, and what helps; none without such classes."""
    info, counts = train.info, _count(train.pixels[i] for i in split.labelled)
    valid = _valid(info, counts)
    total = sum(counts[value] for value in valid)
    rare = [info.classes[value] for value in valid if counts[value] < _RARE * total]
    if not rare:
        return []
    return [
        f"below {_RARE:.0%} of the labelled pixels: {', '.join(rare)}; "
        "--config.data.rare_class_share=0.5 shows them more often (docs/own_data.md)"
    ]


def _count(pixels: Iterable[dict[int, int] | None]) -> Counter[int]:
    """Pixels by label value over the images that have a label."""
    total: Counter[int] = Counter()
    for counts in pixels:
        total.update(counts or {})
    return +total


def _valid(info: DatasetInfo, counts: Counter[int]) -> list[int]:
    return [value for value in range(info.num_classes) if counts[value]]


def _check_counting(info: DatasetInfo, counts: Counter[int], *notes: dict[str, int]) -> None:
    count = info.num_classes
    dropped = sum(part.get(f"label_map n:{info.ignore}", 0) for part in notes)
    if counts[0] or not dropped:
        return
    shifted = ",".join(f"{value}:{value - 1}" for value in range(1, count + 1))
    raise ValueError(
        f"{info.name}: no mask has the value 0, and config.data.label_map = n:{info.ignore} ignores the "
        f"value {count} in {dropped} pixels ({100 * dropped / counts.total():.1f} %), so the values seem to "
        f'count from 1. Then set --config.data.label_map="{shifted}"; if they count from 0 and '
        f'{info.classes[0]!r} does not occur, set "{count}:{info.ignore}"'
    )


def _check_classes(info: DatasetInfo, every: Counter[int], labelled: Counter[int]) -> None:
    seen = _valid(info, every)
    if set(every) == _BLACK_AND_WHITE:
        raise ValueError(
            f"{info.name}: the masks hold only the values 0 and 255, and 255 is ignored, so only "
            f"{info.classes[0]!r} would be learnt. If white is {info.classes[1]!r}, set "
            '--config.data.label_map="255:1"'
        )
    if len(seen) == 1:
        raise ValueError(
            f"{info.name}: the masks show the one class {info.classes[seen[0]]!r}, so there is nothing to "
            "tell apart; correct their values, or name the classes in the order of the values"
        )
    if not _valid(info, labelled):
        raise ValueError(
            f"{info.name}: no labelled image has a pixel that counts (all are {info.ignore}); correct the "
            "masks, or choose other labelled images with config.data.split"
        )


def _describe_notes(train: Source, validation: Source, *, masked: int) -> list[str]:
    found = Counter(train.notes) + Counter(validation.notes)
    lines = []
    for note, number in sorted(found.items()):
        if note == "turned":
            lines.append(
                f"{number} photos are turned upright by their EXIF data; their masks must be upright, too"
            )
        elif note == "transparent":
            lines.append(f"{number} transparent pixels of the masks are ignored")
        elif match := re.fullmatch(r"label_map (\w+:\d+)", note):
            share = 100 * number / max(masked, 1)
            lines.append(f"label map {match[1]}: {number} pixels ({share:.2f} % of the masks)")
        elif match := re.fullmatch(r"(\d+) bits", note):
            of = f"use {match[1]} bits per sample" if match[1] != "1" else "hold fractions of white"
            lines.append(f"{number} photos {of}; they are scaled to 8 bits from that range")
    return lines


def _describe_classes(
    info: DatasetInfo, both: Counter[int], labelled: Counter[int], held_out: Counter[int]
) -> list[str]:
    lines = []
    if not both[0]:
        lines.append(
            f"warning: no mask has the value 0 ({info.classes[0]}); if the values count from 1, the classes "
            "are shifted by one"
        )
    if len(_valid(info, labelled)) == 1:
        only = info.classes[_valid(info, labelled)[0]]
        lines.append(
            f"warning: the labelled images show only {only}; label others, or more (config.data.split)"
        )
    absent = [name for value, name in enumerate(info.classes) if not held_out[value]]
    if absent:
        lines.append(
            f"warning: never in validation, so 0 in the mean IoU (the table also has the mean without): "
            f"{', '.join(absent)}"
        )
    return lines
