"""What the best models of finished runs predict: scores on further photos, and a picture.

In: workdirs whose `serving/` holds the best weights. Out: `test.json` in each workdir; a PNG or JPEG.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from semivl_jax import compiled_programs, utils
from semivl_jax.data import images, label_files
from semivl_jax.data.examples import EvalExample, EvalExamples
from semivl_jax.data.find_images import images_in
from semivl_jax.evaluation import visualize
from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.experiment import data as data_lib
from semivl_jax.inference.load import Model, open_model
from semivl_jax.text import class_names
from tfds_builders.folder_semi.scan import parse_label_map

PARTS = ("test", "val", "validation")
"""Folders below images/, in the order in which they are looked for."""
PICTURE_ROWS, PICTURE_SIDE = 3, 320
PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG"}


def score(workdirs: Sequence[Path], folder: Path, *, label_map: str) -> None:
    """Evaluates the best models as in training; writes `test.json` where it is not there for this folder.

    Raises:
      ValueError: the folder has no such photos, lacks a mask, or has other classes than a model.
    """
    classes = class_names.read_classes(folder / "classes.txt").classes
    for workdir in workdirs:
        path = workdir / "test.json"
        if path.exists() and json.loads(path.read_text(encoding="utf8"))["folder"] == str(folder):
            continue
        model, evaluator = _open(workdir)
        if model.info.classes != classes:
            raise ValueError(
                f"{folder}/classes.txt has other classes than {workdir}; give it the same"
            )
        result = evaluator.evaluate(
            evaluator.place(model.variables), photos(folder, label_map=label_map)
        )
        found = {
            "folder": str(folder),
            "images": result.images,
            "miou": result.miou,
            "iou": dict(zip(classes, result.iou.tolist(), strict=True)),
        }
        utils.write_text(path, json.dumps(found, indent=1) + "\n")
        print(
            f"{workdir.name}: mIoU {result.miou:.1f} on {result.images} photos of {folder}",
            flush=True,
        )


def read_score(workdir: Path) -> float | None:
    """mIoU on test photos; None where it was not measured."""
    path = workdir / "test.json"
    return json.loads(path.read_text(encoding="utf8"))["miou"] if path.exists() else None


def photos(folder: Path, *, label_map: str) -> Iterator[EvalExample]:
    """Photos and masks of the first folder of `PARTS`; its other parts need not exist.

    Raises:
      ValueError: there is no photo, or one without a usable mask.
    """
    part = next((part for part in PARTS if (folder / "images" / part).is_dir()), None)
    root = folder / "images" / (part or "")
    paths = images_in(root).files if part else ()
    if part is None or not paths:
        raise ValueError(f"{folder} has no photos in images/test or images/val; put some there")
    num_classes = class_names.read_classes(folder / "classes.txt").num_classes
    changes = np.arange(256, dtype=np.uint8)
    for old, new in parse_label_map(label_map, num_classes=num_classes).items():
        changes[old] = new
    for path in paths:
        id = path.relative_to(root).with_suffix("")
        mask = folder / "masks" / part / f"{id}.png"
        try:
            image = images.decode_image(path.read_bytes())
            label = changes[label_files.decode_label(mask.read_bytes())]
            images.check_pair(image, label)
            images.check_labels(label, num_classes=num_classes)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} or its mask {mask} cannot be used: {error}") from error
        yield EvalExample(str(id), image, label)


def draw(workdirs: Mapping[str, Path], path: Path) -> None:
    """Validation photos, spread evenly, with their truth and the predictions of the models by title.

    The photos are those of the first run.
    """
    first = next(iter(workdirs.values()))
    config = ConfigDict(json.loads((first / "config.json").read_text(encoding="utf8")))
    examples = EvalExamples(data_lib.open_data(config).validation)
    count = min(PICTURE_ROWS, len(examples))
    chosen = [examples[(2 * i + 1) * len(examples) // (2 * count)] for i in range(count)]
    rows = [(example.image, {"truth": example.label}) for example in chosen]
    for title, workdir in workdirs.items():
        model, evaluator = _open(workdir)
        shown = (example.image for example in chosen)
        predictions = evaluator.predict(evaluator.place(model.variables), shown)
        for (_, maps), prediction in zip(rows, predictions, strict=True):
            maps[title] = prediction.labels
    sheet = visualize.panels(
        rows, classes=model.info.classes, palette=model.info.palette, largest=PICTURE_SIDE
    )
    with utils.atomic_write(path) as temporary:
        Image.fromarray(sheet).save(temporary, PICTURE_FORMATS[path.suffix], quality=88)
    print(f"picture: {path}")


def _open(workdir: Path) -> tuple[Model, Evaluator]:
    """The best model of a run, evaluated as in its training."""
    config = json.loads((workdir / "config.json").read_text(encoding="utf8"))
    compiled_programs.use_cache(config["compilation_cache"])
    model = open_model(workdir)
    return model, Evaluator(model.network, model.window, num_classes=model.info.num_classes)
