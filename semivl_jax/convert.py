"""Turns weights that others published into a file of this project.

    python -m semivl_jax.convert ViT-B-16.pt --out clip_vit_b16.safetensors
    python -m semivl_jax.convert best.pth --out voc_92.safetensors
    python -m semivl_jax.convert clip_vit_b16.safetensors --out clip_vit_b16.npz

What the weights are is recognised from their content. Names and shapes must be exactly those of the model:
what is missing, unexpected or misshapen is listed, and then nothing is written. With an --out that ends with
.npz it is the other way round: towers of this project in big_vision's layout. Exit codes: 0 written, 2
something is wrong (one sentence says what). All formats: docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import utils
from semivl_jax.weights import checkpoints, files, kinds, npz
from semivl_jax.weights.tree import flatten


def main(argv: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit code."""
    parsed = parser().parse_args(argv)
    options = kinds.Options(
        image_heads=parsed.image_heads,
        text_heads=parsed.text_heads,
        decoder_heads=parsed.decoder_heads,
        as_trained=parsed.as_trained,
    )
    try:
        weights = convert(
            parsed.src, parsed.out, kind=parsed.kind, entry=parsed.entry, options=options
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(describe(weights, parsed.out))
    return 0


def convert(
    src: Path,
    out: Path,
    *,
    kind: str = "",
    entry: str = "",
    options: kinds.Options | None = None,
) -> files.Weights:
    """Converts a file or folder to a safetensors file, which appears complete or not at all.

    `kind` and `entry` are recognised where they are empty.

    Raises:
      ValueError: the weights cannot be read, are of no known kind, or do not fit their model.
    """
    if out.suffix == ".npz":
        return _export(src, out)
    if out.suffix != ".safetensors":
        raise ValueError(f"--out={out} must end with .safetensors, or .npz to export")
    checkpoint = checkpoints.read(src, entry=entry)
    recognised = kinds.recognise(checkpoint, kind)
    weights = recognised.convert(checkpoint, options or kinds.Options())
    files.save(out, weights)
    return weights


def _export(src: Path, out: Path) -> files.Weights:
    """A file of this project with towers in it, to big_vision's layout."""
    weights = files.load(src, expect=(files.CLIP, files.SIGLIP, files.BACKBONE))
    npz.save(out, weights)
    return weights


def describe(weights: files.Weights, path: Path) -> str:
    """What was recognised, how large its parts are, and how the file is used."""
    title = next(kind.title for kind in kinds.KINDS if kind.name == weights.kind)
    lines = [f"recognised: {title} ({weights.kind})"]
    lines += [f"  {part}: {_sizes(sizes)}" for part, sizes in weights.sizes.items()]
    lines += [f"  {name.replace('_', ' ')}: {text}" for name, text in weights.notes.items()]
    lines += [
        f"  {part:<13}{count:>13,} parameters" for part, count in parameter_counts(weights).items()
    ]
    lines.append(f"written to {path}")
    if path.suffix == ".safetensors":
        lines.append(f"use it with --config.{_use(weights)}={path}")
    return "\n".join(lines)


def _use(weights: files.Weights) -> str:
    if weights.kind == "resnet_v1c":
        return "model.conv_encoder_weights"
    return files.USES[weights.format]


def parameter_counts(weights: files.Weights) -> dict[str, int]:
    """Parameters of every part and in total; running statistics are no parameters."""
    tree = weights.tree if weights.format == files.CLIP else weights.tree["params"]
    parts = {
        name: sum(math.prod(leaf.shape) for leaf in flatten({name: part}).values())
        for name, part in tree.items()
    }
    return parts | {"total": sum(parts.values())}


def _sizes(sizes: object) -> str:
    if not isinstance(sizes, dict):
        return str(sizes)
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.convert", __doc__)
    made.add_argument("src", type=Path, help="a file, or a folder of the Hugging Face layout")
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the file to write: FILE.safetensors; FILE.npz exports in big_vision's layout",
    )
    made.add_argument(
        "--kind",
        default="",
        help=f"what the weights are, where that is not recognised: {', '.join(kinds.names())}",
    )
    made.add_argument(
        "--entry",
        default="",
        help="the part of a training's checkpoint to take, such as model_ema; default: model",
    )
    for part in ("image", "text", "decoder"):
        made.add_argument(
            f"--{part}_heads",
            type=int,
            help=f"attention heads of the {part} part, where they are not the published ones",
        )
    made.add_argument(
        "--as_trained",
        action="store_true",
        help="CLIP's image tower with the activation and epsilon of its training (QuickGELU, 1e-5) instead "
        "of SemiVL's (exact GELU, 1e-6)",
    )
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
