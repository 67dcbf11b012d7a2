"""From host batches to `types.Batch` on the devices, some batches ahead of the step.

In: an iterator of host batches, dicts of this process's share as NumPy arrays (see `pipeline`). Out:
`Batch`es of global jax.Arrays, uint8 and int32, sharded over their first axis.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax

from semivl_jax.data.pipeline import HostBatch, TrainPipeline
from semivl_jax.types import Batch, ImageBatch, LabelledBatch


def to_device(batch: HostBatch, sharding: jax.sharding.NamedSharding) -> Batch:
    """Puts this process's share of a batch on the devices."""
    streams: dict[str, dict[str, jax.Array]] = {}
    for key, local in batch.items():
        name, field = key.rsplit("/", 1)
        whole = (local.shape[0] * jax.process_count(), *local.shape[1:])
        array = jax.make_array_from_process_local_data(sharding, local, whole)
        streams.setdefault(name, {})[field] = array
    labelled = LabelledBatch(**streams.pop("labelled"))
    return Batch(labelled, {name: ImageBatch(**fields) for name, fields in streams.items()})


@contextlib.contextmanager
def prefetch_to_device(
    pipeline: TrainPipeline, start_step: int, *, sharding: jax.sharding.NamedSharding, ahead: int
) -> Iterator[Iterator[Batch]]:
    """Device batches from a step on, `ahead` of them prepared while the step computes.

    Leaving the context stops the transfer thread and the pipeline's workers.

    Raises (from the iterator):
      ValueError: an image or label that cannot be used.
    """
    with pipeline.batches(start_step) as stream, ThreadPoolExecutor(1, "prefetch") as pool:
        pending = collections.deque(
            pool.submit(_next, stream, sharding) for _ in range(max(1, ahead))
        )

        def batches() -> Iterator[Batch]:
            while True:
                batch = pending.popleft().result()
                pending.append(pool.submit(_next, stream, sharding))
                yield batch

        try:
            yield batches()
        finally:
            for future in pending:
                future.cancel()


def _next(stream: Iterator[HostBatch], sharding: jax.sharding.NamedSharding) -> Batch:
    return to_device(next(stream), sharding)
