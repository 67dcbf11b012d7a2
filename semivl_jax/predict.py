"""Segments images: masks, overlays and, if wanted, scores.

    python -m semivl_jax.predict --model runs/photos --images holiday/ more/*.jpg --out predictions
    python -m semivl_jax.predict --model runs/photos --images a.jpg --out predictions --classes "dog, lawn"
    python -m semivl_jax.predict --model clip:WEIGHTS.safetensors --images . --out zero --classes names.txt

Below --out: masks/NAME.png (class indices with palette), overlays/NAME.jpg (image tinted with its classes,
legend below), scores/NAME.npz with --save_scores (`scores` float32 [h, w, n] in the order of `names`), and
classes.json (names and colours by index, the image of every mask). Folders below an image folder are kept.

Exit codes: 0 done, 1 some images could not be read (they are listed at the end), 2 another error, described
in one sentence, 130 stopped by Ctrl-C; what is written stays.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from semivl_jax import compiled_programs, utils
from semivl_jax.data.find_images import describe_left_out
from semivl_jax.inference import files

if TYPE_CHECKING:
    from semivl_jax.inference.segmenter import Segmenter


def main(argv: Sequence[str]) -> int:
    """Segments the images and returns the exit code."""
    options = parser().parse_args(argv)
    # Pillow warns about odd metadata, which does not matter here; broken pixels are errors.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    stopped = "stopped; what is written stays, --existing=skip continues"
    return utils.run_command(lambda: _predict(options), stopped=stopped)


def _predict(options: argparse.Namespace) -> int:
    # Imported late so that --help and a misspelt option answer at once.
    from semivl_jax.inference.segmenter import Segmenter

    begun = time.perf_counter()
    compiled_programs.use_cache(options.compilation_cache)
    out = files.ResultFolder(utils.user_path(options.out), scores=options.save_scores)
    found, left_out = files.find_images(options.images, without=out.root)
    segmenter = Segmenter.load(
        options.model,
        classes=options.classes,
        definitions=options.definitions,
        device=options.device,
        batch=options.batch,
        cache=options.text_cache,
        window=options.window,
    )
    images = out.claim(found, segmenter.names, segmenter.palette, existing=options.existing)
    loaded = time.perf_counter()
    unreadable = _segment(segmenter, images, out, scores=options.save_scores)
    seconds = time.perf_counter() - loaded
    done = len(images) - len(unreadable)
    skipped = f"; {len(found) - len(images)} were there already" * (len(images) < len(found))
    print(
        f"{done} images in {seconds:.1f} s ({done / max(seconds, 1e-9):.2f} images/s, with compilation and "
        f"writing), after {loaded - begun:.1f} s to load the model{skipped}\n"
        f"masks, overlays{', scores' * options.save_scores}: {out.root}"
    )
    if left_out:
        print(describe_left_out(left_out))
    if unreadable:
        print(f"{len(unreadable)} images could not be read:", file=sys.stderr)
        for message in unreadable:
            print(f"  {message}", file=sys.stderr)
    return 1 if unreadable else 0


def _segment(
    segmenter: Segmenter, images: list[files.ImageFile], out: files.ResultFolder, *, scores: bool
) -> list[str]:
    """Reads, segments and writes side by side; returns what is wrong with the images that cannot be read."""
    unreadable: list[str] = []
    segmented: deque[files.ImageFile] = deque()  # in the order of the segmentations

    def readable() -> Iterator[np.ndarray]:
        for image, pixels in utils.ordered_map(_read, images, workers=2):
            if isinstance(pixels, str):
                unreadable.append(pixels)
                progress.update()
            else:
                segmented.append(image)
                yield pixels

    with utils.Progress("predicting", total=len(images), unit="images") as progress:
        segmentations = segmenter.segment(readable(), scores=scores)
        found = ((segmented.popleft(), segmentation) for segmentation in segmentations)
        for _ in utils.ordered_map(lambda pair: out.write(*pair), found, workers=2):
            progress.update()
    return unreadable


def _read(image: files.ImageFile) -> tuple[files.ImageFile, np.ndarray | str]:
    """The pixels, or why there are none."""
    from semivl_jax.inference.segmenter import as_rgb

    try:
        return image, as_rgb(image.path)
    except ValueError as error:
        return image, str(error)


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.predict", __doc__)
    add = made.add_argument
    add("--model", required=True, metavar="DIR|hf://USER/REPO|clip:WEIGHTS",
        help="working directory of a run, its folder serving, a model on the hub, or CLIP weights "
        "(clip:demo: the small tower of the demo)")  # fmt: skip
    add("--images", required=True, nargs="+", metavar="PATH", help="files, folders or patterns")
    add("--out", required=True, metavar="DIR", help="where masks and overlays go")
    add("--classes", metavar="FILE|a,b,c",
        help="other classes than the training's; lines of FILE: name, or name: concept, …")  # fmt: skip
    add("--definitions", nargs="?", const="concept", choices=("concept", "concept_average"),
        help="describe classes by their concepts: the best of them (concept, if nothing follows), or "
        "their mean (concept_average)")  # fmt: skip
    add("--save_scores", action="store_true", help="also write scores/NAME.npz")
    add("--existing", choices=files.EXISTING, default="refuse",
        help="results that are there: refuse to begin (default), skip them, or replace them")  # fmt: skip
    add("--batch", type=utils.positive,
        help="windows per call of the network; default: as in the training's evaluation")  # fmt: skip
    add("--device", help="cpu, gpu, tpu, …; default: what JAX prefers")
    add("--window", type=utils.positive, help="side of the windows of clip:WEIGHTS, in pixels")
    add("--text_cache", metavar="DIR", default=utils.TEXT_CACHE,
        help="keeps text embeddings; empty: none; default: %(default)s")  # fmt: skip
    add("--compilation_cache", metavar="DIR", default=utils.COMPILATION_CACHE,
        help="keeps compiled programs; empty: none; default: %(default)s")  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
