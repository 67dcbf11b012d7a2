"""Runs a model that `python -m semivl_jax.export` wrote. Needs JAX and NumPy, nothing else.

    python run_exported.py model.stablehlo image.npy labels.npy

In: the program with its JSON file beside it, and a uint8 RGB image [h, w, 3] saved with `numpy.save`, of the
size that the program was exported for. Out: labels, uint8 [h, w], indices of the classes in the JSON file.
"""

import json
import pathlib
import sys

import numpy as np
from jax import export


def main(program: str, image: str, labels: str) -> None:
    """Labels one image and prints the share of every class."""
    facts = json.loads(pathlib.Path(f"{program}.json").read_text(encoding="utf8"))
    model = export.deserialize(bytearray(pathlib.Path(program).read_bytes()))
    pixels = np.load(image)
    if facts["images"] == "float32":
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        pixels = ((pixels / 255 - mean) / std).astype(np.float32)
    found = np.asarray(model.call(pixels[None]))[0]
    if facts["output"] == "logits":
        found = found.argmax(-1).astype(np.uint8)
    np.save(labels, found)
    for index, name in enumerate(facts["classes"]):
        print(f"{name}: {100 * (found == index).mean():.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
