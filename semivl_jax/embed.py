"""Writes text embeddings of class names to a file, and compares them with published ones.

    python -m semivl_jax.embed --dataset voc --weights clip.safetensors --out voc.npy
    python -m semivl_jax.embed --classes_file classes.txt --definitions --weights demo --out mine.safetensors
    python -m semivl_jax.embed --dataset voc --weights clip.safetensors --out voc.npy --dtype float16 \\
        --compare voc12_wbg_single.npy

A `.npy` file holds the rows [k, d], of unit length, alone; a `.safetensors` file `embeddings` and `class_of`
(int32 [k], the class of every row), with names and mode in its metadata. Rows are in the order of the
classes, concepts in the order of their definitions (docs/semivl.md 2).

Exit codes: 0 done, 1 --compare found a row that differs (cosine below 0.999), 2 an error, described in one
sentence, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semivl_jax import utils
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text import class_names, class_text
from semivl_jax.types import ClassText
from semivl_jax.weights import store, towers

ALIKE = 0.999
"""Cosine from which two rows mean the same."""


def main(argv: Sequence[str]) -> int:
    """Writes and compares the embeddings; returns the exit code."""
    options = parser().parse_args(argv)
    return utils.run_command(lambda: _embed(options))


def _embed(options: argparse.Namespace) -> int:
    out = utils.user_path(options.out)
    if out.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"--out {out}: end the name with .npy or .safetensors")
    if options.dataset:
        info = class_names.dataset_info(options.dataset)
    else:
        info = class_names.read_classes(Path(options.classes_file), where="--classes_file")
    mode = "concept" if options.definitions else options.mode
    clip = towers.load(options.weights, "clip_vit_b16")
    tower = class_text.TextTower.of(clip)
    text = class_text.class_text(info, mode=mode, tower=tower, cache=options.text_cache)
    _write(out, text, info, mode, np.dtype(options.dtype))
    print(f"{text.embeddings.shape[0]} rows of {text.embeddings.shape[1]} numbers: {out}")
    return _compare(text, info, Path(options.compare)) if options.compare else 0


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.embed", __doc__)
    add = made.add_mutually_exclusive_group(required=True).add_argument
    add("--dataset", choices=class_names.DATASETS, help="classes of a public data set")
    add("--classes_file", help="one class per line, name or name: concept, concept")
    add = made.add_mutually_exclusive_group().add_argument
    add("--mode", choices=class_names.MODES, default="name",
        help="one row per class from its name (default), per concept, or from their mean")  # fmt: skip
    add("--definitions", action="store_true", help="the same as --mode concept")
    add = made.add_argument
    add("--weights", required=True, help="CLIP weights, or demo")
    add("--out", required=True, help="FILE.npy or FILE.safetensors")
    add("--dtype", choices=("float32", "float16"), default="float32",
        help="of the rows; default: %(default)s")  # fmt: skip
    add("--compare", metavar="FILE.npy", help="rows to compare with, in their order")
    add("--text_cache", default=utils.TEXT_CACHE,
        help="folder that keeps text embeddings; default: %(default)s")  # fmt: skip
    return made


def _write(out: Path, text: ClassText, info: DatasetInfo, mode: str, dtype: np.dtype) -> None:
    rows = np.asarray(text.embeddings).astype(dtype)
    if out.suffix == ".safetensors":
        tree = {"embeddings": rows, "class_of": np.asarray(text.class_of)}
        store.save_tree(out, tree, {"names": json.dumps(info.classes), "mode": mode})
        return
    with utils.atomic_write(out) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows)


def _compare(text: ClassText, info: DatasetInfo, path: Path) -> int:
    """Prints the cosine of every row with the file's; 1 where one is below `ALIKE`."""
    rows = np.asarray(text.embeddings)
    try:
        others = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise ValueError(f"--compare {path} cannot be read ({error}); name a .npy file") from error
    if others.shape != rows.shape:
        raise ValueError(
            f"--compare {path} has the shape {others.shape}, these rows have {rows.shape}; compare the same "
            "classes in the same mode, made with a tower of the same size"
        )
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    cosine = (rows * others).sum(axis=1) / np.maximum(lengths, 1e-12)
    for row, value in enumerate(cosine):
        name = info.classes[int(text.class_of[row])]
        print(f"{row:4d}  {value:.6f}  {name}{'' if value >= ALIKE else '   differs'}")
    differ = int((cosine < ALIKE).sum())
    print(
        f"smallest cosine {cosine.min():.6f}, mean {cosine.mean():.6f}; "
        + (f"{differ} of {len(rows)} rows differ" if differ else "all rows alike")
    )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
