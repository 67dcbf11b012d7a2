"""Loads batches in two worker processes until killed; prints their process ids."""

import multiprocessing
import sys
import time
from pathlib import Path

from semivl_jax.data.crops import Geometry
from semivl_jax.data.pipeline import TrainPipeline
from semivl_jax.data.source import open_source
from semivl_jax.types import Stream


def main() -> None:
    source = open_source(Path(sys.argv[1]), "train")
    geometry = Geometry(crop=16, resize="long_side")
    options = {"batch": 2, "geometry": geometry, "seed": 0, "workers": 2}
    pipeline = TrainPipeline(source, [0], [1, 2], streams=(Stream("unlabelled"),), **options)
    with pipeline.batches(0) as stream:
        for _ in range(3):
            next(stream)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
