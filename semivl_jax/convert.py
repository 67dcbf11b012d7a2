"""Converts published weights to a file of this project.

    python -m semivl_jax.convert ViT-B-16.pt --out clip_vit_b16.safetensors
    python -m semivl_jax.convert best.pth --out voc_92.safetensors
    python -m semivl_jax.convert clip_vit_b16.safetensors --out clip_vit_b16.npz

The format of the weights is detected from their content. Names and shapes must be exactly those of the
model: otherwise missing, unexpected and misshapen tensors are listed and nothing is written. With an --out
that ends with .npz a file of this project is exported in big_vision's layout. Exit codes: 0 written, 2
error (one sentence). All formats: docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import utils
from semivl_jax.weights import convert, detect_format
from semivl_jax.weights.layout import ACTIVATIONS, Options


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns the exit code."""
    parsed = parser().parse_args(argv)
    options = Options(
        image_heads=parsed.image_heads,
        text_heads=parsed.text_heads,
        decoder_heads=parsed.decoder_heads,
        grid=parsed.grid,
        as_trained=parsed.as_trained,
        activation=parsed.activation,
    )
    try:
        if parsed.tokenizer is not None:
            options = dataclasses.replace(options, tokenizer=parsed.tokenizer.read_bytes())
        weights = convert.convert_file(
            parsed.src, parsed.out, format=parsed.format, entry=parsed.entry, options=options
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(convert.describe(weights, parsed.out))
    return 0


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
        "--format",
        default="",
        help=f"published format of the weights, if it is not detected: {', '.join(detect_format.names())}",
    )
    made.add_argument(
        "--entry",
        default="",
        help="the part of a training checkpoint to take, such as model_ema; default: model",
    )
    for part in ("image", "text", "decoder"):
        made.add_argument(
            f"--{part}_heads",
            type=int,
            help=f"attention heads of the {part} part, if they are not the published ones",
        )
    made.add_argument(
        "--grid",
        type=_grid,
        metavar="ROWSxCOLUMNS",
        help="patches of the image encoder's position table, if it is not square",
    )
    made.add_argument(
        "--as_trained",
        action="store_true",
        help="CLIP's image tower with the activation and epsilon of its training (QuickGELU, 1e-5) instead "
        "of SemiVL's (exact GELU, 1e-6)",
    )
    made.add_argument(
        "--activation",
        default="",
        choices=ACTIVATIONS,
        help="activation that a CLIP was trained with, where no file beside the weights says it: "
        "quick_gelu for OpenAI's, gelu for most of open_clip",
    )
    made.add_argument(
        "--tokenizer",
        type=Path,
        help="SigLIP's tokenizer.json; default: the one beside the weights in Hugging Face's layout",
    )
    return made


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 14x20")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
