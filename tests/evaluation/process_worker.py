"""Run by test_processes: one of two processes that evaluate their shares of the examples."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.train import sharding
from tests.evaluation import toy


def main(address, index, output):
    jax.distributed.initialize(address, num_processes=2, process_id=index)
    # Weights are split over the devices of both processes, as in training.
    place = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec("data"))
    weights = np.pad(toy.make_variables()["w"], ((0, 1), (0, 0)))
    variables = jax.make_array_from_callback(weights.shape, place, lambda part: weights[part])
    mesh = sharding.make_mesh()
    variables = sharding.local(mesh, variables)

    evaluator = Evaluator(
        lambda variables, images: toy.apply({"w": jnp.asarray(variables)[:3]}, images),
        toy.window(window_batch=4),
        num_classes=toy.CLASSES,
    )
    result = evaluator.evaluate(variables, toy.make_examples()[index::2])
    found = {
        "images": result.images,
        "confusion": result.confusion.tolist(),
        "image_iou": result.image_iou,
    }
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
