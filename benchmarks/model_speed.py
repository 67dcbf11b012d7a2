"""Megabytes and images per second of models beside each other.

    python -m benchmarks.model_speed runs/big runs/light
    python -m benchmarks.model_speed configs/voc.py configs/folder.py:photos,model=light --side=512

A model is a run, or a configuration, whose network is then untrained. The device is what JAX chooses, with
JAX_PLATFORMS=cpu the CPU. Time is the best of several calls with one image of --side pixels (default: the
crop of each); megabytes are those of float32 weights, without text tower.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax import utils
from semivl_jax.inference import bundle
from semivl_jax.models import build
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import towers

CLASSES = 21


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("benchmarks.model_speed", __doc__)
    made.add_argument("models", nargs="+", metavar="RUN|CONFIG", help="a run, or configs/NAME.py:…")
    made.add_argument("--side", type=utils.positive, help="of the image in pixels")
    made.add_argument(
        "--calls", type=utils.positive, default=5, help="calls that are timed; default: %(default)s"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    options = parser().parse_args(argv)
    return utils.run_command(lambda: _table(options))


def _table(options: argparse.Namespace) -> int:
    print(f"device: {jax.devices()[0].device_kind}")
    print("| model | image | parameters | MB | images/s |\n| --- | --- | --- | --- | --- |")
    for name in options.models:
        model, variables, text = _of_config(name) if ".py" in name else _of_run(name)
        side = options.side or model.crop
        speed = 1 / min(_seconds(model, variables, text, side, options.calls))
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) / 1e6
        print(f"| {name} | {side} | {count:,} | {size:.1f} | {speed:.2f} |", flush=True)
    return 0


def _of_run(name: str) -> tuple[SegmentationModel, PyTree, ClassText | None]:
    stored = bundle.load(name)
    model = build.segmenter(
        stored.config, num_classes=stored.info.num_classes, clip_sizes=stored.clip_sizes
    )
    return model, jax.device_put(stored.variables), stored.text


def _of_config(name: str) -> tuple[SegmentationModel, PyTree, ClassText | None]:
    path, _, argument = name.partition(":")
    file = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = file.get_config(argument)
    sizes = towers.IMAGE_SIZES[config.model.tower]
    model = build.segmenter(config, num_classes=CLASSES, clip_sizes=sizes)
    text = None
    if config.model.decoder in build.TEXT_DECODERS:
        width = towers.TEXT_SIZES[config.model.tower]["out_dim"]
        text = ClassText(jnp.eye(CLASSES, width), jnp.arange(CLASSES), CLASSES)
    image = jnp.zeros((1, model.crop, model.crop, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, text))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.01 * rng.random(leaf.shape, np.float32)), shapes
    )
    return model, variables, text


def _seconds(
    model: SegmentationModel, variables: PyTree, text: ClassText | None, side: int, calls: int
) -> list[float]:
    """Seconds of every call after the first, which compiles."""
    image = jax.random.normal(jax.random.key(0), (1, side, side, 3))
    apply = jax.jit(lambda variables, image: model.apply(variables, image, text))
    jax.block_until_ready(apply(variables, image))
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        jax.block_until_ready(apply(variables, image))
        taken.append(time.perf_counter() - start)
    return taken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
