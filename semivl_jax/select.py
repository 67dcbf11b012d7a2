"""Chooses which unlabelled images, or regions of them, to label next.

    python -m semivl_jax.select runs/photos --budget=20
    python -m semivl_jax.select runs/photos --budget=200 --unit=region --radius=16 --out next

Every unlabelled training image of the run is segmented. It scores high where the model hesitates and classes
meet (RIPU, arXiv 2111.12940). Images are chosen by that score and by how far their classes are from those of
images that are labelled or chosen already; regions by their score alone, at most --per_image from an image.

Below --out: selection.csv (rank, id, box, score), overlays/ID.jpg (the prediction, and the chosen boxes),
masks/ID.png (the prediction to be corrected; for regions 255 outside of them, which training ignores), and
split.txt (ids of the labelled and the chosen images, for --config.data.split once their masks are corrected).

Exit codes: 0 done, 2 an error, described in one sentence, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from semivl_jax import compiled_programs, utils
from semivl_jax.evaluation import acquisition as acquisition_lib
from semivl_jax.types import IGNORE_INDEX

if TYPE_CHECKING:
    from semivl_jax.experiment.data import Data
    from semivl_jax.inference.segmenter import Segmentation, Segmenter

HEAD = ("rank", "id", "row", "column", "height", "width", "score")
BOX_COLOUR = (255, 40, 40)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A box of an image to be labelled, in pixels, and its score; `index` into the training images."""

    index: int
    row: int
    column: int
    height: int
    width: int
    score: float

    @property
    def box(self) -> tuple[slice, slice]:
        """As an index into the image."""
        return (
            slice(self.row, self.row + self.height),
            slice(self.column, self.column + self.width),
        )


def main(argv: Sequence[str]) -> int:
    """Chooses, writes and returns the exit code."""
    options = parser().parse_args(argv)
    return utils.run_command(lambda: _select(options))


def _select(options: argparse.Namespace) -> int:
    # Imported late so that --help and a misspelt option answer at once.
    from semivl_jax.experiment import data as data_lib
    from semivl_jax.experiment import workdir as workdir_lib
    from semivl_jax.inference.segmenter import Segmenter

    run = utils.user_path(options.run)
    out = utils.user_path(options.out) if options.out else run / "select"
    for name in ("selection.csv", "masks", "overlays", "split.txt"):
        if (out / name).exists():
            raise ValueError(
                f"{out} holds a selection or other files already ({name}); choose another --out, or delete it"
            )
    compiled_programs.use_cache(options.compilation_cache)
    data = data_lib.open_data(workdir_lib.read(run))
    segmenter = Segmenter.load(run)
    pool = list(data.split.unlabelled)
    if not pool:
        raise ValueError(f"{run} has no unlabelled images to choose from; add some")
    if options.unit == "image":
        chosen = choose_images(segmenter, data, pool, options.budget, options.diversity)
    else:
        chosen = choose_regions(
            segmenter, data, pool, options.budget, options.radius, options.per_image
        )
    _write(out, segmenter, data, chosen)
    images = len({choice.index for choice in chosen})
    print(f"{len(chosen)} {options.unit}s of {images} images: {out / 'selection.csv'}")
    return 0


def choose_images(
    segmenter: Segmenter, data: Data, pool: Sequence[int], budget: int, diversity: float
) -> list[Choice]:
    """Whole images, best first."""
    scores, shares = [], []
    for _, found, maps in _scored(segmenter, data, pool, radius=1):
        scores.append(float(maps.score.mean()))
        shares.append(_shares(found.labels, data))
    known = [_stored_shares(data, index) for index in _labelled(data)]
    places = acquisition_lib.pick_images(
        scores, np.asarray(shares), budget, known=np.asarray(known), diversity=diversity
    )
    return [Choice(pool[i], 0, 0, *data.train.sizes[pool[i]], scores[i]) for i in places]


def choose_regions(
    segmenter: Segmenter, data: Data, pool: Sequence[int], budget: int, radius: int, per_image: int
) -> list[Choice]:
    """Square regions, best first; no two overlap."""
    found: list[Choice] = []
    for index, _, maps in _scored(segmenter, data, pool, radius=radius):
        blocked = np.zeros(maps.score.shape, bool)
        picks = acquisition_lib.pick_regions(
            maps.score, min(per_image, budget), block_radius=2 * radius, blocked=blocked
        )
        for row, column in picks:
            rows, columns = (
                side.indices(length)
                for side, length in zip(
                    acquisition_lib.window(row, column, radius), blocked.shape, strict=True
                )
            )
            found.append(
                Choice(
                    index,
                    rows[0],
                    columns[0],
                    rows[1] - rows[0],
                    columns[1] - columns[0],
                    float(maps.score[row, column]),
                )
            )
    return sorted(found, key=lambda choice: -choice.score)[:budget]


def _scored(
    segmenter: Segmenter, data: Data, pool: Sequence[int], *, radius: int
) -> Iterator[tuple[int, Segmentation, acquisition_lib.Acquisition]]:
    """(index, prediction, maps) of every image of the pool."""
    images = (data.train.decode(index, label=False)[0] for index in pool)
    with utils.Progress("scoring", total=len(pool), unit="images") as progress:
        for index, found in zip(pool, segmenter.segment(images), strict=True):
            maps = acquisition_lib.acquisition(segmenter.probabilities(found), radius=radius)
            yield index, found, maps
            progress.update()


def _labelled(data: Data) -> tuple[int, ...]:
    """Also those that the run withheld."""
    return data.split.labelled + data.split.calibration


def _shares(label: np.ndarray, data: Data) -> np.ndarray:
    return acquisition_lib.class_shares(label, num_classes=data.info.num_classes)


def _stored_shares(data: Data, index: int) -> np.ndarray:
    """Of the mask, from the counts that were made when the data set was prepared."""
    counts = data.train.count_classes([index])[0][: data.info.num_classes]
    return counts / max(counts.sum(), 1)


def _write(out: Path, segmenter: Segmenter, data: Data, chosen: Sequence[Choice]) -> None:
    """Everything below `out`; the table last, as the mark of a complete selection."""
    by_image: dict[int, list[Choice]] = {}
    for choice in chosen:
        by_image.setdefault(choice.index, []).append(choice)
    images = (data.train.decode(index, label=False)[0] for index in by_image)
    found = segmenter.segment(images, scores=False)
    for (index, boxes), segmentation in zip(by_image.items(), found, strict=True):
        name = data.train.ids[index]
        mask = np.full_like(segmentation.labels, IGNORE_INDEX)
        for choice in boxes:
            mask[choice.box] = segmentation.labels[choice.box]
        prefilled = dataclasses.replace(segmentation, labels=mask)
        with utils.atomic_write(out / "masks" / f"{name}.png") as path:
            prefilled.save(path)
        with utils.atomic_write(out / "overlays" / f"{name}.jpg") as path:
            _overlay(segmentation, boxes).save(path, format="JPEG", quality=92)
    ids = [data.train.ids[index] for index in (*_labelled(data), *by_image)]
    utils.write_text(out / "split.txt", "".join(f"{name}\n" for name in ids))
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(HEAD)
    for rank, c in enumerate(chosen, 1):
        place = (c.row, c.column, c.height, c.width)
        lines.writerow((rank, data.train.ids[c.index], *place, f"{c.score:.6f}"))
    utils.write_text(out / "selection.csv", table.getvalue())


def _overlay(segmentation: Segmentation, boxes: Sequence[Choice]) -> Image.Image:
    """The prediction over the image, and the boxes that do not cover it."""
    image = segmentation.image.copy()
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for c in boxes:
        if (c.height, c.width) != image.shape[:2]:
            draw.rectangle(
                (c.column - 1, c.row - 1, c.column + c.width, c.row + c.height), outline=BOX_COLOUR
            )
    return dataclasses.replace(segmentation, image=np.asarray(picture)).overlay().convert("RGB")


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.select", __doc__)
    add = made.add_argument
    add("run", help="working directory of a run, such as runs/photos")
    add("--budget", type=utils.positive, required=True, help="how many images or regions to label")
    add("--unit", choices=("image", "region"), default="image", help="default: %(default)s")
    add("--diversity", type=float, default=1.0,
        help="of images: exponent of the distance of their classes; 0: the score alone; "
        "default: %(default)s")  # fmt: skip
    add("--radius", type=utils.positive, default=16,
        help="of regions: their side is 2 * radius + 1 pixels; default: %(default)s")  # fmt: skip
    add("--per_image", type=utils.positive, default=5,
        help="of regions: most of one image; default: %(default)s")  # fmt: skip
    add("--out", metavar="DIR", help="where the results go; default: select in the run's folder")
    add("--compilation_cache", metavar="DIR", default=utils.COMPILATION_CACHE,
        help="keeps compiled programs; empty: none; default: %(default)s")  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
