"""What all builders share: the features of a record, self-describing metadata, safe preparation.

A record holds `id` (text), `image` (encoded bytes, PNG or JPEG as it came), `label` (encoded
PNG, grey or palette, whose values are class indices, 255 = ignore; **empty bytes = no label**) and
`captions` (texts, often none). Splits are "train" and "validation".

Records keep the order in which the builder yields them. The metadata holds, beside names, palette and
definitions, `ids` {part: [id, …]} in that order, `pixels` {part: [{value: count} | null, …]}, the label
values of every image (null = no label), `sizes` {part: [[rows, columns], …]}, and `notes`
{part: {note: number}} of the builder: choosing labelled images and reporting on them reads no record. Every
image and label is decoded once before it is written. TFDS receives encoded bytes only, so that neither
preparing nor reading needs TensorFlow.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import errno
import functools
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from semivl_jax import buckets, utils
from semivl_jax.data import download, images, label_files
from semivl_jax.data.dataset_info import DatasetInfo

PARTS = ("train", "validation")

_PER_IMAGE = ("ids", "pixels", "sizes")
_METADATA = (*_PER_IMAGE, "notes")
_LAST = "metadata.json"
"""The file that a bucket gets last: with it, a data set is complete."""


class UnusableError(ValueError):
    """A file that cannot be used: its name `where` and the reason `what`.

    `alike` problems are the same in many files (a value that is not mapped) and need not all be listed.
    """

    def __init__(self, where: str, what: str, *, alike: bool = False) -> None:
        super().__init__(f"{where} {what}")
        self.where, self.what, self.alike = where, what, alike


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image on its way into a data set: encoded bytes, or a path to them.

    `label` None means unlabelled. `origin` (by default the id) is what error messages call the image.
    `problems` are those that its builder has found; `notes` are numbers that are added up over a part.
    """

    id: str
    image: bytes | os.PathLike
    label: bytes | os.PathLike | None = None
    captions: tuple[str, ...] = ()
    origin: str = ""
    problems: tuple[UnusableError, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Inspected:
    """A sample with its bytes, (rows, columns), and pixels per label value (None = no label)."""

    sample: Sample
    size: tuple[int, int] = (0, 0)
    pixels: dict[str, int] | None = None


def features() -> tfds.features.FeaturesDict:
    """The feature specification of every builder in this package."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(doc="file stem or other unique name"),
            "image": tfds.features.Image(doc="encoded as it came, PNG or JPEG"),
            "label": tfds.features.Image(
                shape=(None, None, 1),
                encoding_format="png",
                use_colormap=True,
                doc="class index per pixel, 255 = ignore; empty bytes where there is no label",
            ),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
    )


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of all builders.

    A data set implements `about` (its classes) and `_split_generators`, which returns
    `{"train": self.write("train", samples), "validation": self.write("validation", samples)}` with
    iterables of `Sample`. Ids must be unique within a part.
    """

    HOMEPAGE: ClassVar[str | None] = None
    SIZES: ClassVar[
        Mapping[str, int]
    ] = {}  # images that a part must have; others may have any number

    @abc.abstractmethod
    def about(self) -> DatasetInfo:
        """Names, palette and definitions of the classes."""

    @property
    def citation(self) -> str | None:
        """BibTeX of the data set, if it has one."""
        return None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(type(self).__doc__ or self.name).strip(),
            features=features(),
            homepage=self.HOMEPAGE,
            citation=self.citation,
            metadata=tfds.core.MetadataDict(
                self.about().to_json() | {name: {} for name in _METADATA}
            ),
            disable_shuffling=True,  # record i is the i-th sample: the id list stays valid
        )

    def write(
        self, part: str, samples: Iterable[Sample], *, then: Iterable[Sample] = ()
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Check samples, turn them into records, note their ids; for use in `_split_generators`.

        After a sample that cannot be used nothing more is written, but all others are checked, and
        those of `then` (the other part) as well: one error names everything that is to be repaired.

        Raises (while the records are read):
          ValueError: an id that occurs twice in the part, a part without any image, and whatever
            `inspect` finds.
        """
        check = functools.partial(inspect, about=self.about())
        columns: dict[str, list[Any]] = {name: [] for name in _PER_IMAGE}
        notes: collections.Counter[str] = collections.Counter()
        seen: set[str] = set()
        problems: list[UnusableError] = []
        total = self.SIZES.get(part)
        with utils.Progress(f"{self.name}, {part}", total=total, unit="images") as shown:
            for found in utils.ordered_map(check, samples):
                shown.update()
                sample = found.sample
                problems += sample.problems
                if problems:
                    continue
                if sample.id in seen:
                    raise ValueError(
                        f"{self.name}: the id {sample.id!r} occurs twice in {part}; rename one image"
                    )
                seen.add(sample.id)
                columns["ids"].append(sample.id)
                columns["pixels"].append(found.pixels)
                columns["sizes"].append(list(found.size))
                notes.update(sample.notes)
                yield (
                    len(seen) - 1,
                    {
                        "id": sample.id,
                        "image": sample.image,
                        "label": b"" if sample.label is None else sample.label,
                        "captions": list(sample.captions),
                    },
                )
        if problems:
            for found in utils.ordered_map(check, then):
                problems += found.sample.problems
            _raise_all(problems)
        if not seen:
            raise ValueError(f"{self.name}: the part {part!r} has no image; add some")
        for name, values in columns.items():
            self.info.metadata[name][part] = values
        self.info.metadata["notes"][part] = dict(notes)

    def _generate_examples(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("builders return self.write(...) from _split_generators")


def _raise_all(problems: list[UnusableError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    lines: dict[object, str] = {}
    others = collections.Counter(problem.what for problem in problems if problem.alike)
    for problem in problems:
        key = problem.what if problem.alike else problem
        more = others[problem.what] - 1 if problem.alike else 0
        lines.setdefault(key, f"{problem}" + f" ({more} more files are like this)" * (more > 0))
    listed = "\n".join(f"  {line}" for line in lines.values())
    raise ValueError(f"{len(problems)} images or labels cannot be used:\n{listed}")


def inspect(sample: Sample, about: DatasetInfo) -> Inspected:
    """Decode a sample once; return it with its bytes, its size, and the pixels of every label value.

    Its `problems` name an image or label that cannot be decoded, a label of another size than its image, or
    with values that are neither a class nor 255.
    """
    if sample.problems:
        return Inspected(sample)
    what = f"image {sample.origin or sample.id}"
    try:
        data = _read(sample.image)
        image = images.decode_image(data)
        images.check_size(image)
        sample = dataclasses.replace(sample, image=data)
        if sample.label is None:
            return Inspected(sample, image.shape[:2])
        what = f"label of {sample.origin or sample.id}"
        data = _read(sample.label)
        label = label_files.decode_label(data)
        images.check_pair(image, label)
        images.check_labels(label, num_classes=about.num_classes)
    except (ValueError, OSError) as error:
        problem = UnusableError(what, f"cannot be used: {error}")
        return Inspected(dataclasses.replace(sample, problems=(problem,)))
    counts = np.bincount(label.reshape(-1), minlength=256)
    present = {str(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return Inspected(dataclasses.replace(sample, label=data), image.shape[:2], present)


def _read(encoded: bytes | os.PathLike) -> bytes:
    return encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels, uint8 [h, w] or RGB [h, w, 3], as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def address(bucket: str, builder: SegmentationBuilder, root: Path) -> str:
    """Where a bucket's folder has what the builder prepares below `root`."""
    return f"{bucket.rstrip('/')}/{Path(builder.data_path).relative_to(root).as_posix()}"


def prepare(builder: SegmentationBuilder, *, remote: str = "") -> Path:
    """Prepare a data set unless it is there already; return its directory.

    Records are written to a temporary directory that is renamed when complete: an interrupted
    preparation leaves nothing that could be taken for the data set, its remains are removed and it
    starts again. Processes that prepare the same data set wait for the first one.

    Records are read from this machine only. With `remote`, an address in a bucket, they are copied from
    there; if they are not there, they are prepared here and copied to the bucket.

    Raises:
      ValueError: the directory exists but lacks files (copied in part, or edited), the builder found
        something wrong with its input, or the disk is full.
    """
    directory = Path(builder.data_path)
    if not directory.exists():  # else no lock: the folder may be read-only
        with download.only_one(directory.parent):
            if not directory.exists():
                for remains in directory.parent.glob(f"incomplete.*_{directory.name}"):
                    shutil.rmtree(remains)
                if not (remote and _copied(remote, directory)):
                    print(f"preparing {builder.name} in {directory} (once)", flush=True)
                    tfds.disable_progress_bar()  # `write` shows how far it is
                    _write_records(builder)
    check_complete(directory, sizes=builder.SIZES)
    if remote:
        _copy_to(remote, directory)
    return directory


def _copied(remote: str, directory: Path) -> bool:
    """Copies a prepared data set from a bucket; False if there is none."""
    folder = buckets.Folder(remote)
    files = folder.files()
    if _LAST not in files:
        return False
    print(f"copying {remote} to {directory} (once for each machine)", flush=True)
    part = directory.with_name(f"incomplete.copy_{directory.name}")
    with utils.Progress("copying", total=sum(files.values()), unit="B") as shown:
        folder.download(files, part, count=shown.update)
    part.rename(directory)
    return True


def _copy_to(remote: str, directory: Path) -> None:
    """Copies a prepared data set to a bucket if that has none."""
    folder = buckets.Folder(remote)
    if _LAST not in folder.files():
        print(f"copying {directory} to {remote} (once)", flush=True)
        names = [path.name for path in directory.iterdir() if path.is_file()]
        folder.upload(names, directory, last=_LAST)


def _write_records(builder: SegmentationBuilder) -> None:
    try:
        # TFDS prints about its own downloads, of which there are none.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except (RuntimeError, OSError) as error:
        # ArrayRecord raises errors of the operating system as RuntimeError.
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"{builder.name} cannot be written to {Path(builder.data_path).parent} ({error}); make room or "
            "choose another data directory; no incomplete files were left"
        ) from error


def check_complete(directory: Path, *, sizes: Mapping[str, int]) -> None:
    """Checks that nothing is missing in a prepared directory.

    Raises:
      ValueError: a missing description, metadata file or record shard, or another number of images in
        a part than in `sizes`; with the remedy.
    """
    remedy = "delete the directory and prepare it again"
    for needed in ("dataset_info.json", "features.json", "metadata.json"):
        if not (directory / needed).is_file():
            raise ValueError(f"{directory} is no complete data set: {needed} is missing; {remedy}")
    info = tfds.builder_from_directory(directory).info
    for split in info.splits.values():
        for shard in split.filepaths:
            if not Path(shard).is_file():
                raise ValueError(
                    f"{directory} is no complete data set: {Path(shard).name} is missing; {remedy}"
                )
    for part, expected in sizes.items():
        if info.splits[part].num_examples != expected:
            raise ValueError(
                f"{directory} has {info.splits[part].num_examples} images for {part} instead of "
                f"{expected}; {remedy}"
            )
