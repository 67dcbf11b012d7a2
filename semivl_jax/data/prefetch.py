"""From host batches to `types.Batch` on the devices, some batches ahead of the step.

In: an iterator of host batches, dicts of this process's share as NumPy arrays (see `pipeline`). Out:
`Batch`es of global jax.Arrays, uint8 and int32, split over their first axis as the sharding says.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

import jax

from semivl_jax.data.pipeline import BatchStream, HostBatch, TrainPipeline
from semivl_jax.types import Batch, LabelledBatch, UnlabelledBatch


def to_device(batch: HostBatch, sharding: jax.sharding.NamedSharding) -> Batch:
    """Put one host batch on the devices; every process gives its own share."""

    def put(name: str) -> jax.Array:
        local = batch[name]
        whole = (local.shape[0] * jax.process_count(), *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, whole)

    def unlabelled(name: str) -> UnlabelledBatch | None:
        if f"{name}/image" not in batch:
            return None
        return UnlabelledBatch(image=put(f"{name}/image"), size=put(f"{name}/size"))

    return Batch(
        labelled=LabelledBatch(image=put("labelled/image"), label=put("labelled/label")),
        unlabelled=unlabelled("unlabelled"),
        partner=unlabelled("partner"),
    )


@contextlib.contextmanager
def feed(
    pipeline: TrainPipeline, start_step: int, *, sharding: jax.sharding.NamedSharding, ahead: int
) -> Iterator[Iterator[Batch]]:
    """Device batches from a step on, `ahead` of them prepared while the step computes.

    Leaving the context stops the transfer thread and the pipeline's workers.

    Raises (from the iterator):
      ValueError: an image or label that cannot be used.
    """
    with pipeline.batches(start_step) as stream, _Ahead(stream, sharding, ahead) as batches:
        yield batches


class _Ahead:
    """A thread that transfers batches and keeps up to `ahead` of them; the last item may be an error."""

    def __init__(
        self, stream: BatchStream, sharding: jax.sharding.NamedSharding, ahead: int
    ) -> None:
        self._stream = stream
        self._sharding = sharding
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="device-feed", daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item: Batch | BaseException = to_device(next(self._stream), self._sharding)
            except BaseException as error:
                item = error
            while not self._stop.is_set():
                with contextlib.suppress(queue.Full):
                    self._ready.put(item, timeout=0.1)
                    break
            if isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._error is None:
            item = self._ready.get()
            if not isinstance(item, BaseException):
                return item
            self._error = item
        raise self._error

    def __enter__(self) -> _Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
