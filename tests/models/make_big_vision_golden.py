"""Writes tests/golden/big_vision.npz: numbers of the ViT in github.com/google-research/big_vision.

    git clone https://github.com/google-research/big_vision /path/to/big_vision
    PYTHONPATH=.:/path/to/big_vision python -m tests.models.make_big_vision_golden

big_vision/models/vit.py needs jax, flax, scipy and what big_vision/utils.py imports.
"""

import json

import jax
import numpy as np
from big_vision.models import vit
from flax import traverse_util

from tests.golden_files import OWN

SIZES = {"patch_size": 8, "width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 48}
POOLING = {"augreg": "tok", "siglip": "map"}
SIDE = 24


def main():
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    arrays = {"in/image": image}
    for kind, pool_type in POOLING.items():
        options = {**SIZES, "patch_size": (SIZES["patch_size"],) * 2}
        model = vit.Model(num_classes=None, posemb="learn", pool_type=pool_type, **options)
        shapes = traverse_util.flatten_dict(
            jax.eval_shape(model.init, jax.random.key(0), image)["params"], sep="/"
        )
        flat = {
            name: rng.normal(0, 0.2, leaf.shape).astype(np.float32) for name, leaf in shapes.items()
        }
        params = traverse_util.unflatten_dict(flat, sep="/")
        with jax.default_matmul_precision("highest"):
            pooled, out = model.apply({"params": params}, image)
        arrays |= {f"w/{kind}/{name}": array for name, array in flat.items()}
        arrays |= {f"out/{kind}/pooled": pooled, f"out/{kind}/map": out["pre_logits_2d"]}
    meta = {"sizes": SIZES, "kinds": list(POOLING)}
    np.savez_compressed(OWN / "big_vision.npz", meta=json.dumps(meta), **arrays)


if __name__ == "__main__":
    main()
