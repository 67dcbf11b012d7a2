"""Which training images are labelled and which are unlabelled, by id (docs/semivl.md 6).

One prepared copy of a data set serves every split: a split is two lists of record indices. The labelled
list decides; all other training images are unlabelled, whether or not a label exists for them.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
from collections.abc import Mapping, Sequence

import numpy as np

from semivl_jax import utils
from semivl_jax.data import id_lists
from semivl_jax.data.published_splits import PublishedList
from semivl_jax.data.source import Source

_EVERY_LABEL = "all"
_AUTO, _AUTO_SHARE = "auto", "1_8"


@dataclasses.dataclass(frozen=True)
class Split:
    """Record indices of the labelled and the unlabelled images, and the origin of the labelled list.

    `calibration`: labelled images that are withheld, so `labelled` does not contain them.
    """

    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...]
    origin: str = dataclasses.field(compare=False)
    calibration: tuple[int, ...] = ()


def resolve_split(
    source: Source,
    labelled: str,
    *,
    published: Sequence[str] | None = None,
    unlabelled: str = "",
    seed: int = 0,
    supervised: bool = False,
) -> Split:
    """Turn a description of a split into record indices.

    Args:
      source: the training part.
      labelled: a share "1_k" of the images that have a label, a number of images ("46"), "all" images
        that have a label, or a file with one id per line. "auto": all, or 1_8 where no image would be left.
      published: ids of the published list of this name, if there is one; it takes the place of a draw.
      unlabelled: a file with one id per line; empty: every training image that is not labelled.
      seed: of the draw for a share or a number.
      supervised: nothing unlabelled is needed.

    Raises:
      ValueError: an unknown description, a file that is missing or names an unknown image, a labelled
        image without a label, an image in both lists, an empty list.
    """
    exists = source.labels_exist()
    if labelled == _AUTO:
        labelled = _EVERY_LABEL if unlabelled or not all(exists) else _AUTO_SHARE
    by_id = {name: index for index, name in enumerate(source.ids)}
    if published is not None:
        chosen, origin = _known(published, by_id, labelled), f"the published list {labelled!r}"
    elif _is_list(labelled):
        chosen = _read_list(labelled, by_id, key="config.data.split")
        origin = f"the list {labelled}"
    else:
        candidates = [name for name, has_label in zip(source.ids, exists, strict=True) if has_label]
        if labelled != _EVERY_LABEL:
            candidates = draw_ids(candidates, _count(labelled, len(candidates)), seed=seed)
        chosen = [by_id[name] for name in candidates]
        origin = f"{labelled!r} drawn with seed {seed}"
    for index in chosen:
        if not exists[index]:
            raise ValueError(
                f"config.data.split={labelled!r} names {source.ids[index]!r}, which has no mask; add "
                "the mask or take the line out of the list"
            )
    taken = set(chosen)
    if unlabelled:
        rest = _read_list(unlabelled, by_id, key="config.data.unlabelled")
        both = [source.ids[index] for index in rest if index in taken]
        if both:
            raise ValueError(
                f"config.data.unlabelled={unlabelled!r} and config.data.split={labelled!r} both name "
                f"{both[0]!r} ({len(both)} images in all); take them out of one of the lists"
            )
    else:
        rest = [index for index in range(len(source)) if index not in taken]
    if not rest and not supervised:
        raise ValueError(
            f"config.data.split={labelled!r} leaves no unlabelled image; label fewer, add images "
            "without masks, or train on labelled images alone with --config.method.name=supervised"
        )
    return Split(tuple(chosen), tuple(rest), origin)


def draw_ids(ids: Sequence[str], count: int, *, seed: int) -> list[str]:
    """The first `count` of the sorted ids after Python's `random.Random(seed).shuffle`.

    With seed 0 these are the published labelled lists of ADE20K.
    """
    order = sorted(ids)
    random.Random(seed).shuffle(order)
    return order[:count]


def withhold(
    labelled: Sequence[int], *, share: float, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(labelled images that stay, images withheld for calibration).

    Withheld are a share of the images, but at least 8 and at most a quarter of them.

    Raises:
      ValueError: there are fewer than four labelled images.
    """
    count = min(max(8, round(share * len(labelled))), len(labelled) // 4)
    if not count:
        raise ValueError(
            f"method.calibrate = True withholds a quarter of the labelled images at most, but there are "
            f"{len(labelled)}; label at least 4, or set method.calibrate = False"
        )
    order = list(labelled)
    random.Random(seed).shuffle(order)
    taken = set(order[:count])
    return tuple(i for i in labelled if i not in taken), tuple(order[:count])


def labelled_count(
    labelled: str, total: int, *, published: Mapping[str, PublishedList]
) -> int | None:
    """How many of `total` labelled images a description chooses; None where the images decide.

    Raises:
      ValueError: an unknown description.
    """
    if labelled in published:
        return published[labelled].count
    if labelled == _AUTO or _is_list(labelled):
        return None
    return total if labelled == _EVERY_LABEL else _count(labelled, total)


def _count(labelled: str, total: int) -> int:
    share = re.fullmatch(r"1_(\d+)", labelled)
    if share:
        divisor = int(share[1])
        count = round(total / divisor) if divisor else 0
    elif labelled.isdecimal():
        count = int(labelled)
    else:
        raise ValueError(
            f"config.data.split={labelled!r} is neither a share such as '1_8', a number of images such "
            "as '46', 'all', 'auto', nor an existing file of ids"
        )
    if not 0 < count <= total:
        raise ValueError(
            f"config.data.split={labelled!r} means {count} labelled images, but {total} images have a "
            f"label; choose from 1 to {total}"
        )
    return count


def _known(names: Sequence[str], by_id: Mapping[str, int], split: str) -> list[int]:
    missing = [name for name in names if name not in by_id]
    if missing:
        raise ValueError(
            f"the published list config.data.split={split!r} names {missing[0]!r} ({len(missing)} images "
            "in all), which the prepared data set does not have; prepare the whole data set, or give a "
            "list of your own"
        )
    return [by_id[name] for name in names]


def _is_list(text: str) -> bool:
    return text not in (_EVERY_LABEL, _AUTO) and os.path.isfile(utils.user_path(text))


def _read_list(path: str, by_id: Mapping[str, int], *, key: str) -> list[int]:
    file = utils.user_path(path)
    if not file.is_file():
        raise ValueError(f"{key}={path!r} is no file; give a file with one image id per line")
    return [by_id[name] for name in id_lists.read_id_list(file, by_id, key=f"{key}={path!r}")]


def describe_split(source: Source, split: Split) -> str:
    """Lines of text: images and their sizes, the classes' shares of the labelled pixels, missing classes."""
    info = source.info
    counts, images = source.count_classes(split.labelled)
    valid = counts[: info.num_classes]
    total, void = int(valid.sum()), int(counts[info.ignore])
    width = max(len(name) for name in info.classes)
    lines = [
        f"{info.name}: {len(source)} training images, {len(split.labelled)} labelled, "
        f"{len(split.unlabelled)} unlabelled",
        f"labelled images: {split.origin}",
        _describe_sizes(source.sizes),
        f"labelled pixels that count: {100 * total / max(1, total + void):.1f} %",
    ]
    for value, name in enumerate(info.classes):
        share = 100 * counts[value] / max(1, total)
        lines.append(f"  {value:3d} {name:{width}s} {share:6.2f} % in {images[value]} images")
    never = [name for value, name in enumerate(info.classes) if not counts[value]]
    if never:
        lines.append(f"never labelled (learnt from text alone, or not at all): {', '.join(never)}")
    return "\n".join(lines)


def _describe_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    (rows, columns), (most_rows, most_columns) = np.min(sizes, axis=0), np.max(sizes, axis=0)
    different = len(set(sizes))
    if different == 1:
        return f"all images are {columns} x {rows} pixels"
    return (
        f"{different} sizes of image, {columns} to {most_columns} pixels wide and {rows} to "
        f"{most_rows} high"
    )
