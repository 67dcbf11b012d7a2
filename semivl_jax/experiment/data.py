"""The images of a run: data sets prepared and opened, labelled images chosen, classes.

In: `config.data` and the image streams of the method. Out: `Data`, or the facts of a public data set that
is not there.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from semivl_jax import buckets, caches, utils
from semivl_jax.data import published_splits, splits
from semivl_jax.data import source as source_lib
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text import class_names
from semivl_jax.train import distributed, methods
from tfds_builders import builders, common
from tfds_builders.folder_semi import FolderSemi
from tfds_builders.shapes.shapes_dataset_builder import Builder as ShapesBuilder

MakeBuilder = Callable[..., common.SegmentationBuilder]
"""Makes a builder below the folder `data_dir`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The images of a run: sources by part, the split of the training images, further sources by name."""

    info: DatasetInfo
    train: source_lib.Source
    validation: source_lib.Source
    split: splits.Split
    extra: Mapping[str, source_lib.Source] = dataclasses.field(default_factory=dict)

    def lists(self) -> dict[str, list[str]]:
        """Ids of the labelled and the unlabelled images, and of withheld ones."""
        chosen = {"labelled": self.split.labelled, "unlabelled": self.split.unlabelled}
        if self.split.calibration:
            chosen["calibration"] = self.split.calibration
        return {name: [self.train.ids[index] for index in of] for name, of in chosen.items()}


def open_data(config: ConfigDict) -> Data:
    """Prepares missing data sets and selects the labelled images.

    Raises:
      ValueError: images cannot be read, or a stream of the method has no source in `data.extra_sources`.
    """
    settings, method = config.data, methods.create(config.method)
    directory = _prepared(settings, _data_set(settings))
    train = source_lib.open_source(directory, "train")
    published = None
    if settings.split_seed == 0:
        root = directory.parents[1]  # of NAME/VERSION
        published = published_splits.labelled_ids(settings.dataset, settings.split, root)
    split = splits.resolve_split(
        train,
        settings.split,
        published=published,
        unlabelled=settings.unlabelled,
        seed=settings.split_seed,
        supervised=not method.reads_unlabelled,
    )
    if any(stream.source == "calibration" for stream in method.streams):
        kept, calibration = splits.withhold(
            split.labelled, share=settings.calibration_share, seed=settings.split_seed
        )
        split = dataclasses.replace(split, labelled=kept, calibration=calibration)
    validation = source_lib.open_source(directory, "validation")
    extra = _extra_sources(settings, method)
    _check_classes(train.info, extra, {s.source for s in method.streams if s.labels})
    return Data(info=train.info, train=train, validation=validation, split=split, extra=extra)


def _extra_sources(settings: ConfigDict, method: methods.Method) -> dict[str, source_lib.Source]:
    """Further images of the method's streams, from the folders that `data.extra_sources` names."""
    folders = {}
    for part in filter(None, re.split(r",\s*(?=\w+=)", settings.extra_sources)):
        name, equals, folder = part.partition("=")
        if not equals or not folder:
            raise ValueError(
                f"data.extra_sources = {settings.extra_sources!r}: write NAME=FOLDER, …"
            )
        folders[name.strip()] = folder.strip()
    needed = {stream.source for stream in method.streams} - {"unlabelled", "calibration"}
    missing = sorted(needed - folders.keys())
    if missing:
        raise ValueError(
            f"the method needs the image source {missing[0]!r}; name its folder with "
            f"data.extra_sources = '{missing[0]}=/path/to/folder'"
        )
    return {
        name: source_lib.open_source(_prepared(settings, _folder(settings, folders[name])), "train")
        for name in sorted(needed)
    }


def _check_classes(
    info: DatasetInfo, extra: Mapping[str, source_lib.Source], labelled: set[str]
) -> None:
    """ValueError for a further source whose labels mean other classes."""
    for name in sorted(labelled & extra.keys()):
        if extra[name].info.classes != info.classes:
            raise ValueError(
                f"data.extra_sources: the labels of {name!r} are about "
                f"{', '.join(extra[name].info.classes[:4])}, …, the training images about "
                f"{', '.join(info.classes[:4])}, …; make them for the same classes in the same order"
            )


def published_facts(config: ConfigDict) -> tuple[DatasetInfo, int] | None:
    """Classes and images per epoch of a public data set, without opening it.

    None for other data sets, and for a split that depends on the images themselves.
    """
    settings = config.data
    if settings.dataset not in builders.PUBLISHED or settings.unlabelled:
        return None
    train = builders.PUBLISHED[settings.dataset].SIZES["train"]
    labelled = splits.labelled_count(
        settings.split, train, published=published_splits.lists_of(settings.dataset)
    )
    if labelled is None:
        return None
    info = class_names.dataset_info(settings.dataset.removesuffix("_instances"))
    return info, (train - labelled) or labelled


def _data_set(settings: ConfigDict) -> MakeBuilder:
    """Of `data.dataset`."""
    if settings.dataset == "folder":
        return _folder(settings, settings.folder)
    if settings.dataset in builders.PUBLISHED:
        make = builders.PUBLISHED[settings.dataset]
        return functools.partial(make, manual_dir=settings.manual_dir)
    return ShapesBuilder


def _folder(settings: ConfigDict, folder: str) -> MakeBuilder:
    return functools.partial(FolderSemi, folder, label_map=settings.label_map)


def _prepared(settings: ConfigDict, make: MakeBuilder) -> Path:
    """The folder of a data set on this machine, prepared by the first process if it is missing."""
    bucket = settings.directory if buckets.is_bucket(settings.directory) else ""
    builder, root = _builder(make, Path((bucket and utils.DATA_DIRECTORY) or settings.directory))
    remote = common.address(bucket, builder, root) if bucket else ""
    return distributed.main_first(functools.partial(common.prepare, builder, remote=remote))


def _builder(make: MakeBuilder, folder: Path) -> tuple[common.SegmentationBuilder, Path]:
    """The builder below a folder, or below a temporary one where that cannot be written; and the one chosen.

    A data set that is prepared in a folder without permission to write is used.
    """
    directory = utils.user_path(folder)
    reason = caches.unwritable(directory)
    if not reason or directory.is_dir():
        builder = make(data_dir=directory)
        if not reason or Path(builder.data_path).exists():
            return builder, directory
    instead = caches.temporary_folder() / "data"
    consequence = f"data sets are prepared in {instead}"
    caches.warn(directory, reason, "data.directory", consequence)
    return make(data_dir=instead), instead
