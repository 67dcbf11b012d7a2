"""One damaged input of a training: whether it is named in a sentence, or harmless.

In: random numbers and a new folder. Out: what went wrong, or an empty text.
"""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks import photos
from configs import tiny
from semivl_jax.config import set_method
from semivl_jax.experiment import data as data_lib
from semivl_jax.weights import store

SUFFIXES = (".jpg", ".png", ".webp", ".tif", ".bmp")
"""Formats of photos; masks are PNG."""
CHECKED_FORMATS = (".png",)
"""Formats with a checksum."""


def attempt(rng: random.Random, workdir: Path) -> str:
    """Writes a small folder and weights, damages one file and reads everything."""
    workdir.mkdir(parents=True)
    suffix = rng.choice(SUFFIXES)
    folder = workdir / "photos"
    _write(folder, workdir / "weights.safetensors", suffix)
    before = _read(workdir, "before")
    kind = rng.choice(("photo", "mask", "classes", "list", "weights"))
    path = {
        "photo": folder / f"images/train/00{rng.randrange(4)}{suffix}",
        "mask": folder / f"masks/train/00{rng.randrange(4)}.png",
        "classes": folder / "classes.txt",
        "list": folder / "labelled.txt",
        "weights": workdir / "weights.safetensors",
    }[kind]
    damage, content = _damaged(rng, path.read_bytes())
    if content == path.read_bytes():
        return ""
    path.write_bytes(content)
    at = f"{path.name} ({kind}), {damage}"
    try:
        after = _read(workdir, "after")
    except ValueError as error:
        named = path.stem in str(error) or (kind == "list" and "data.split" in str(error))
        return "" if named else f"{at}: the file is not named: {error}"
    except Exception as error:
        return f"{at}: {type(error).__name__}: {error}"
    if after == before:
        return ""
    if kind == "mask" or (kind == "photo" and suffix in CHECKED_FORMATS):
        return f"{at}: changed without a word"
    return ""


def _write(folder: Path, weights: Path, suffix: str) -> None:
    photos.make_folder(folder, (24, 32), count=4, labelled=4, classes=3)
    for path in sorted(folder.rglob("*.jpg")):
        if suffix != ".jpg":
            Image.open(path).save(path.with_suffix(suffix), lossless=True)
            path.unlink()
    (folder / "labelled.txt").write_text("000\n002\n")
    tree = {"a": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}, "b": np.float32([1, 2])}
    store.save_tree(weights, tree, {"format": "fuzz"})


def _read(workdir: Path, name: str) -> str:
    """A hash of everything that a training reads."""
    config: ConfigDict = tiny.get_config(str(workdir / "photos"))
    config.data.directory = str(workdir / name)
    config.data.split = str(workdir / "photos/labelled.txt")
    set_method(config, "fixmatch")
    data = data_lib.open_data(config)
    found = hashlib.sha256(repr((data.info, data.lists())).encode())
    for source in (data.train, data.validation):
        for index in range(len(source.ids)):
            for pixels in source.decode(index, label=True):
                found.update(repr(pixels.shape).encode() + pixels.tobytes())
    flat, metadata = store.load_flat(workdir / "weights.safetensors")
    found.update(repr((sorted(flat), metadata)).encode())
    for leaf in flat.values():
        found.update(leaf.tobytes())
    return found.hexdigest()


def _damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """What was done, and the new content."""
    place = rng.randrange(len(content))
    length = rng.randrange(1, 32)
    new = io.BytesIO(content)
    match rng.choice(("flip", "cut", "insert", "remove", "zeros", "empty", "noise")):
        case "flip":
            bit = rng.randrange(8)
            new.seek(place)
            new.write(bytes([content[place] ^ 1 << bit]))
            return f"bit {bit} of byte {place} flipped", new.getvalue()
        case "cut":
            return f"cut after {place} bytes", content[:place]
        case "insert":
            added = content[:place] + rng.randbytes(length) + content[place:]
            return f"{length} bytes inserted at {place}", added
        case "remove":
            return f"{length} bytes removed at {place}", content[:place] + content[place + length :]
        case "zeros":
            end = min(len(content), place + length)
            zeros = content[:place] + bytes(end - place) + content[end:]
            return f"zeros from {place} to {end}", zeros
        case "empty":
            return "emptied", b""
        case _:
            return "replaced by noise", rng.randbytes(len(content))
