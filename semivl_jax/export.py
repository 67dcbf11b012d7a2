"""Writes a model as StableHLO for a window of fixed size, or puts it on the Hugging Face hub.

    python -m semivl_jax.export --model runs/photos --out model.stablehlo
    python -m semivl_jax.export --model runs/photos --out labels.stablehlo --size 384,512 --output labels \\
        --classes "dog, lawn" --platforms cpu,cuda
    python -m semivl_jax.export --model runs/photos --push_to_hub USER/REPO

The file holds weights and program; `jax.export.deserialize` turns it into a function of images
[b, h, w, 3] (uint8 RGB, or float32 normalised with the ImageNet statistics) that returns logits [b, h, w, n]
or labels uint8 [b, h, w]. Beside it FILE.json names the classes. `examples/run_exported.py` needs nothing but
JAX and NumPy to run it. JAX keeps reading such files for six months; what is to last longer is the folder
serving/ (docs/predict.md).

Exit codes: 0 done, 2 an error, described in one sentence, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from semivl_jax import utils
from semivl_jax.inference import hub, load
from semivl_jax.models import image_normalization
from semivl_jax.models.resize import bilinear

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def main(argv: Sequence[str]) -> int:
    """Exports and uploads the model; returns the exit code."""
    options = parser().parse_args(argv)
    return utils.run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if not options.out and not options.push_to_hub:
        raise ValueError("nothing to do; give --out FILE, --push_to_hub USER/REPO, or both")
    if options.out:
        _export(options)
    if options.push_to_hub:
        page = hub.push(options.model, options.push_to_hub, private=options.private)
        print(f"on the hub: {page}")
    return 0


def _export(options: argparse.Namespace) -> None:
    model = load.open_model(options.model, classes=options.classes, definitions=options.definitions)
    size = _size(options.size, model)
    exported = export_model(
        model,
        size=size,
        images=options.images,
        output=options.output,
        batch=options.batch,
        platforms=_platforms(options.platforms),
    )
    out = utils.user_path(options.out)
    content = exported.serialize()
    with utils.atomic_write(out) as temporary:
        temporary.write_bytes(content)
    facts = {
        "classes": list(model.info.classes),
        "palette": model.info.palette.tolist(),
        "size": list(size),
        "images": options.images,
        "output": options.output,
        "batch": options.batch or "any",
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
    }
    beside = out.with_name(out.name + ".json")
    utils.write_text(beside, json.dumps(facts, indent=1))
    print(
        f"{out}: {len(content) / 1e6:.1f} MB for {', '.join(exported.platforms)}; "
        f"{options.images} images {exported.in_avals[0].shape} -> {options.output} "
        f"{exported.out_avals[0].shape}; classes: {beside}"
    )


def export_model(
    model: load.Model,
    *,
    size: tuple[int, int],
    images: str,
    output: str,
    batch: int,
    platforms: Sequence[str],
) -> jax_export.Exported:
    """The model with its weights as one program; `batch` = 0 leaves the number of images open."""
    variables = jax.tree.map(jnp.asarray, model.variables)

    def segment(images: jax.Array) -> jax.Array:
        if images.dtype == jnp.uint8:
            images = image_normalization.normalize(images)
        logits = bilinear(model.network(variables, images), size, align_corners=False)
        return logits.argmax(-1).astype(jnp.uint8) if output == "labels" else logits

    lengths = jax_export.symbolic_shape("b") if batch == 0 else (batch,)
    window = jax.ShapeDtypeStruct((*lengths, *size, 3), np.dtype(images))
    return jax_export.export(jax.jit(segment), platforms=list(platforms))(window)


def _size(text: str | None, model: load.Model) -> tuple[int, int]:
    if text is None:
        return model.window.crop, model.window.crop
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--size={text}: give rows and columns, for example 512,512")
    size = int(parts[0]), int(parts[1])
    least = model.window.least_side
    if min(size) < least:
        raise ValueError(f"--size={text} is too small for the model; give {least} or more each")
    return size


def _platforms(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in PLATFORMS]
    if unknown:
        raise ValueError(f"--platforms names {unknown[0]!r}; choose among {', '.join(PLATFORMS)}")
    return names


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.export", __doc__)
    add = made.add_argument
    add("--model", required=True,
        help="working directory of a run, its folder serving, a model on the hub (hf://USER/REPO) or CLIP "
        "weights (clip:WEIGHTS); for --push_to_hub a folder")  # fmt: skip
    add("--out", metavar="FILE", help="the StableHLO program to write, and FILE.json beside it")
    add("--size", metavar="ROWS,COLUMNS", help="of the window, in pixels; default: the crop")
    add(
        "--images",
        choices=("uint8", "float32"),
        default="uint8",
        help="uint8 RGB (default), or normalised",
    )
    add("--output", choices=("logits", "labels"), default="logits",
        help="what the program returns; default: %(default)s")  # fmt: skip
    add("--batch", type=int, default=0, help="images per call; 0 (default): any number")
    add("--platforms", default="cpu,cuda,tpu",
        help="what the program can run on; default: %(default)s")  # fmt: skip
    add("--classes", metavar="FILE|a,b,c",
        help="other classes than the training's, as semivl_jax.predict takes them")  # fmt: skip
    add("--definitions", nargs="?", const="concept", choices=("concept", "concept_average"),
        help="describe classes by their concepts, as semivl_jax.predict does")  # fmt: skip
    add("--push_to_hub", metavar="USER/REPO", help="upload the model with a model card")
    add("--private", action="store_true", help="make the repository private if it is new")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
