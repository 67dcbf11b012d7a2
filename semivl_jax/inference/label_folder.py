"""Label maps made by a model, stored as the masks of a folder of images.

In: a folder with images/ and a `Segmenter`. Out: masks/NAME.png (8-bit class indices with palette),
classes.txt, and val.txt where the folder does not say which images are for validation: it needs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semivl_jax import utils
from semivl_jax.data.class_files import parse_classes
from semivl_jax.data.text_files import read_lines
from semivl_jax.inference.files import ImageFile
from semivl_jax.inference.segmenter import Segmenter, as_rgb


def write_labels(folder: Path, images: Sequence[ImageFile], segmenter: Segmenter) -> int:
    """Labels the images that have no mask yet and returns how many these were.

    Raises:
      ValueError: the folder's classes are others, or an image cannot be read.
    """
    path = folder / "classes.txt"
    if path.exists():
        if parse_classes(read_lines(path), where=str(path)).names != segmenter.names:
            raise ValueError(
                f"{path} has other classes than the model ({', '.join(segmenter.names[:4])}, …); give them "
                "with --classes, or delete classes.txt and masks/"
            )
    else:
        utils.write_text(path, "".join(f"{name}\n" for name in segmenter.names))
    validation = (folder / name for name in ("val.txt", "images/val", "images/validation"))
    if not any(path.exists() for path in validation):
        utils.write_text(folder / "val.txt", images[-1].name.removeprefix("train/") + "\n")
    missing = [image for image in images if not _mask(folder, image).exists()]
    pixels = utils.ordered_map(lambda image: as_rgb(image.path), missing, workers=2)
    with utils.Progress("labelling", total=len(missing), unit="images") as progress:
        found = segmenter.segment(pixels, scores=False)
        for image, segmentation in zip(missing, found, strict=True):
            with utils.atomic_write(_mask(folder, image)) as temporary:
                segmentation.save(temporary)
            progress.update()
    return len(missing)


def _mask(folder: Path, image: ImageFile) -> Path:
    return folder / "masks" / f"{image.name}.png"
