"""Segments images: masks, overlays and, if wanted, scores.

    python -m semivl_jax.predict --model runs/photos --images holiday/ more/*.jpg --out predictions
    python -m semivl_jax.predict --model runs/photos --images a.jpg --out predictions --classes "dog, lawn"
    python -m semivl_jax.predict --model clip:WEIGHTS.safetensors --images . --out zero --classes names.txt

Below --out: masks/NAME.png (class indices with palette), overlays/NAME.jpg (image tinted with its classes,
legend below), scores/NAME.npz with --save_scores (`scores` float32 [h, w, n] in the order of `names`), and
classes.json (names and colours by index). Folders below an image folder are kept.

Exit codes: 0 done, 1 some images could not be read (they are listed at the end), 2 something else is wrong
(one sentence says what), 130 stopped by Ctrl-C; what is written stays.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semivl_jax import utils
from semivl_jax.inference import files

if TYPE_CHECKING:
    from semivl_jax.inference.segmenter import Segmenter

_READ_AHEAD = 4
"""Images that are decoded while others are segmented, and that are written meanwhile."""


def main(argv: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit code."""
    options = parser().parse_args(argv)
    # Odd metadata in photos are no news to whoever wants them segmented; broken pixels are errors.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        return _predict(options)
    except KeyboardInterrupt:
        print("stopped; what is written stays, --existing=skip goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _predict(options: argparse.Namespace) -> int:
    # Imported late so that --help and a misspelt option answer at once.
    from semivl_jax import compilation
    from semivl_jax.inference.segmenter import Segmenter
    from semivl_jax.text import class_text

    begun = time.perf_counter()
    compilation.keep(
        compilation.FOLDER if options.compilation_cache is None else options.compilation_cache
    )
    out = files.Outputs(Path(options.out).expanduser(), scores=options.save_scores)
    images = files.find_images(options.images, without=out.root)
    segmenter = Segmenter.load(
        options.model,
        classes=options.classes,
        definitions=options.definitions,
        device=options.device,
        batch=options.batch,
        cache=class_text.CACHE if options.text_cache is None else options.text_cache,
        window=options.window,
    )
    targets = out.claim(images, segmenter.names, segmenter.palette, existing=options.existing)
    loaded = time.perf_counter()
    unreadable = _run(segmenter, targets, out, options)
    seconds = time.perf_counter() - loaded
    done = len(targets) - len(unreadable)
    skipped = f"; {len(images) - len(targets)} were there already" * (len(targets) < len(images))
    print(
        f"{done} images in {seconds:.1f} s ({done / max(seconds, 1e-9):.2f} images/s, with compilation and "
        f"writing), after {loaded - begun:.1f} s to load the model{skipped}\n"
        f"masks, overlays{', scores' * options.save_scores}: {out.root}"
    )
    if unreadable:
        print(f"{len(unreadable)} images could not be read:", file=sys.stderr)
        for message in unreadable:
            print(f"  {message}", file=sys.stderr)
    return 1 if unreadable else 0


def _run(
    segmenter: Segmenter,
    targets: Sequence[files.Target],
    out: files.Outputs,
    options: argparse.Namespace,
) -> list[str]:
    """Segments and writes; returns what is wrong with the images that cannot be read."""
    unreadable: list[str] = []
    under_way: deque[files.Target] = deque()
    bar = utils.Progress("predicting", total=len(targets), unit="images")

    def images() -> Iterator[np.ndarray]:
        for target, image in _read(targets):
            if isinstance(image, str):
                unreadable.append(image)
                bar.update()
                continue
            under_way.append(target)
            yield image

    writing: deque[Future[None]] = deque()
    with bar, ThreadPoolExecutor(2) as pool:
        for found in segmenter.segment(images(), scores=options.save_scores):
            writing.append(pool.submit(out.write, under_way.popleft(), found))
            bar.update()
            if len(writing) > _READ_AHEAD:
                writing.popleft().result()
        for future in writing:
            future.result()
    return unreadable


def _read(targets: Sequence[files.Target]) -> Iterator[tuple[files.Target, np.ndarray | str]]:
    """Images, or why there is none, in order; a few are decoded ahead."""
    from semivl_jax.inference.segmenter import as_rgb

    def read(target: files.Target) -> np.ndarray | str:
        try:
            return as_rgb(target.image)
        except ValueError as error:
            return str(error)

    ahead: deque[tuple[files.Target, Future[np.ndarray | str]]] = deque()
    with ThreadPoolExecutor(2) as pool:
        try:
            for target in targets:
                ahead.append((target, pool.submit(read, target)))
                if len(ahead) > _READ_AHEAD:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


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
    add(
        "--batch", type=_positive, help="windows per pass; default: as in the training's evaluation"
    )
    add("--device", help="cpu, gpu, tpu, …; default: what JAX prefers")
    add("--window", type=_positive, help="side of the windows of clip:WEIGHTS, in pixels")
    add("--text_cache", metavar="DIR",
        help="keeps text embeddings, empty: does not; default: ~/.cache/semivl_jax/text")  # fmt: skip
    add("--compilation_cache", metavar="DIR",
        help="keeps compiled programs, empty: does not; default: ~/.cache/semivl_jax/xla")  # fmt: skip
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; give 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
