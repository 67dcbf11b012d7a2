"""Do RIPU's losses help where masks label regions only? On the generated images of `shapes`.

    python -m benchmarks.label_regions --out=runs/label_regions [--seeds=0,1,2 --methods=supervised,ripu]

For every seed: train on --labelled random images with whole masks, let `semivl_jax.select --unit=region`
choose regions with that model, take their true labels (255 elsewhere), and train again on both with every
method. The score is the best validation mIoU (%) along the run. Finished runs are not repeated. Prints a
Markdown table and writes `OUT/label_regions.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import label_next, runs, shapes_folder
from semivl_jax import select, utils
from semivl_jax.types import IGNORE_INDEX
from tfds_builders.shapes import generator


def with_regions(run: Path, folder: Path, *, budget: int, radius: int) -> None:
    """`shapes` as a folder with whole masks of the run's labelled images and with those of chosen regions."""
    chosen = run / "select"
    if not (chosen / "selection.csv").exists():
        code = select.main(
            [str(run), "--unit=region", f"--budget={budget}", f"--radius={radius}",
             f"--out={chosen}"]
        )  # fmt: skip
        if code:
            raise SystemExit(code)
    if not (folder / "classes.txt").exists():
        for part, name in (("train", "train"), ("validation", "val")):
            masks = folder / "masks" / name if part == "validation" else None
            count = generator.PARTS[part]
            shapes_folder.write(folder / "images" / name, part, range(count), masks=masks)
        for name in (chosen / "split.txt").read_text(encoding="utf8").split():
            label = generator.sample("train", int(name.rpartition("_")[2])).label
            regions = chosen / "masks" / f"{name}.png"
            if regions.exists():
                label = keep_regions(label, np.asarray(Image.open(regions)))
            shapes_folder.save(folder / "masks" / "train" / f"{name}.png", label)
        shapes_folder.write_classes(folder)  # last, as the mark of a complete folder


def keep_regions(label: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The true labels where the mask of `select` has one, 255 elsewhere."""
    return np.where(regions == IGNORE_INDEX, np.uint8(IGNORE_INDEX), label)


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.label_regions", __doc__)
    runs.add_options(command, out="runs/label_regions")
    add = command.add_argument
    add("--methods", default="supervised,ripu", help="of the second runs; default: %(default)s")
    add("--labelled", type=utils.positive, default=4,
        help="images with whole masks; default: %(default)s")  # fmt: skip
    add("--budget", type=utils.positive, default=200,
        help="regions that are labelled next; default: %(default)s")  # fmt: skip
    add("--radius", type=utils.positive, default=4,
        help="of regions: their side is 2 * radius + 1 pixels; default: %(default)s")  # fmt: skip
    return command


def main() -> None:
    """Trains, chooses, trains again, prints and writes the table."""
    options = parser().parse_args()
    seeds, out = options.seeds.split(","), Path(options.out)
    rows = {"whole images": {"method.name": "supervised", "data.split": options.labelled}}
    first = runs.train(rows, options)["whole images"]
    workdirs = {seed: run.workdir for seed, run in zip(seeds, first, strict=True)}

    def second(seed: str, method: str) -> runs.Fields:
        run, folder = workdirs[seed], out / f"folder-seed{seed}"
        with_regions(run, folder, budget=options.budget, radius=options.radius)
        split = run / "select" / "split.txt"
        return {"method.name": method, "data.dataset": "folder", "data.folder": folder,
                "data.split": split}  # fmt: skip

    for method in options.methods.split(","):
        rows[f"and regions, {method}"] = functools.partial(second, method=method)
    trained = runs.train(rows, options)
    scores = {name: [run.result().best for run in of_row] for name, of_row in trained.items()}
    print("\n" + label_next.format_table(scores, seeds))
    utils.write_text(out / "label_regions.json", json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
