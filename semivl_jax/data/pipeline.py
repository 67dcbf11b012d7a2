"""The training stream: batches of uint8 crops, in an order that only the seed and the step decide.

Out: dicts of NumPy arrays, one batch of this process's share,

    labelled/image  uint8 [b, s, s, 3]    labelled/label  uint8 [b, s, s], 255 = void or padding

and per `types.Stream` of the method NAME/image, NAME/size int32 [b, 2] and, if it has labels, NAME/label;
its second crop is NAME.1/image and so on. `prefetch` puts them on the devices as a `types.Batch`. Grain's
worker processes load, each of them whole batches, or threads of this process (workers=0). The state of the
stream is the next step.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from semivl_jax import utils
from semivl_jax.data import workers as workers_lib
from semivl_jax.data.crops import BatchLoader, CropLoader, ExampleLoader, Geometry
from semivl_jax.data.rare_classes import RareClassSampler
from semivl_jax.data.sampler import Sampler, Shard
from semivl_jax.data.source import Source
from semivl_jax.types import Stream

HostBatch = dict[str, np.ndarray]

_SHARED_MEMORY = Path("/dev/shm")
_BUFFER = 2  # batches that a worker (or the threads) keeps ready beside the one it makes
_ENDLESS = 2**40  # only bounds the index arithmetic


class TrainPipeline:
    """Labelled crops and the streams of a method, for one process of a run.

    Args:
      source: the training images.
      labelled: record indices of the labelled images, at least one.
      unlabelled: record indices of the unlabelled images.
      streams: of the method, beside labelled crops; empty = supervised training.
      batch: images of each stream per step, over all processes.
      geometry: random scale and crop.
      seed: of order and geometry.
      workers: processes that load; 0 = threads of this process.
      process_index: which of the run's processes this is.
      process_count: how many there are.
      extra_sources: further images by the name in `Stream.source`; all of their records are used.
      calibration: record indices of the labelled images that a stream may take as "calibration".
      rare_class_share: share of the labelled crops that are drawn to show rare classes, in [0, 1].

    Raises:
      ValueError: a batch that the processes cannot share, a stream without images or with the name of
        another, an unknown source.
    """

    def __init__(
        self,
        source: Source,
        labelled: Sequence[int],
        unlabelled: Sequence[int],
        *,
        streams: tuple[Stream, ...],
        batch: int,
        geometry: Geometry,
        seed: int,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        extra_sources: Mapping[str, Source] | None = None,
        calibration: Sequence[int] = (),
        rare_class_share: float = 0.0,
    ) -> None:
        keys = ["labelled", *(key for stream in streams for key in stream.keys)]
        if len(set(keys)) != len(keys):
            raise ValueError(
                f"two streams have crops of the same name: {', '.join(keys)}; rename one"
            )
        sources = {"unlabelled": (source, unlabelled)}
        if calibration:
            sources["calibration"] = source, calibration
        for name, extra in (extra_sources or {}).items():
            sources[name] = extra, range(len(extra))
        # Labelled images are repeated to the length of the unlabelled ones, if a stream has these.
        count = any(stream.source == "unlabelled" for stream in streams) * len(unlabelled)
        sampler = Sampler("labelled", len(labelled), seed, max(len(labelled), count))
        rare = None
        if rare_class_share:
            rare = RareClassSampler.from_counts(
                [source.pixels[index] or {} for index in labelled],
                num_classes=source.info.num_classes,
                share=rare_class_share,
                seed=seed,
            )
        first = CropLoader(
            source=source,
            indices=np.asarray(labelled, np.int64),
            sampler=sampler,
            geometry=geometry,
            keys=("labelled",),
            labels=True,
            rare=rare,
        )
        others = (_loader(stream, sources, geometry, seed) for stream in streams)
        self._workers = workers
        self._load = ExampleLoader((first, *others), Shard(batch, process_index, process_count))

    def ids(self, step: int) -> dict[str, list[str]]:
        """Ids of the images in this process's share of a batch, by stream, without loading them."""
        shard = self._load.shard
        rows = [shard.global_index(step * shard.size + position) for position in range(shard.size)]
        return {
            loader.sampler.name: [loader.source.ids[loader.record(row)] for row in rows]
            for loader in self._load.streams
        }

    def batches(self, start_step: int) -> BatchStream:
        """The batches from a step on; use it in a `with` statement, or close it."""
        size = self._load.shard.size
        if not self._workers:
            threads = min(16, os.cpu_count() or 1)
            options = grain.ReadOptions(
                num_threads=threads, prefetch_buffer_size=max(threads, _BUFFER * size)
            )
            examples = grain.MapDataset.range(start_step * size, _ENDLESS).map(self._load)
            return BatchStream(iter(examples.to_iter_dataset(options).batch(size)))
        if not flags.FLAGS.is_parsed():
            # Grain's workers read absl flags, which a notebook or a test has not parsed.
            flags.FLAGS.mark_as_parsed()
        # Every worker makes whole batches, assigned in turn: their number changes nothing.
        batches = grain.MapDataset.range(start_step, _ENDLESS).map(BatchLoader(self._load))
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        if not self._fits_shared_memory():
            dataset = grain.experimental.WithOptionsIterDataset(
                dataset, grain.experimental.DatasetOptions(min_shm_size=_ENDLESS)
            )
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_BUFFER),
            worker_init_fn=workers_lib.start,
        )
        with utils.writing(_SHARED_MEMORY):
            return BatchStream(iter(dataset))

    def _fits_shared_memory(self) -> bool:
        """Whether /dev/shm holds all batches in flight.

        Containers often have 64 MB, and a worker that writes beyond it is killed. Pipes are slower.
        """
        crop_bytes = sum(
            len(loader.keys) * (3 + loader.labels) * loader.geometry.crop**2
            for loader in self._load.streams
        )
        needed = self._load.shard.size * crop_bytes * self._workers * (_BUFFER + 2)
        if not _SHARED_MEMORY.is_dir():
            return True
        return shutil.disk_usage(_SHARED_MEMORY).free > 1.3 * needed


def _loader(
    stream: Stream,
    sources: Mapping[str, tuple[Source, Sequence[int]]],
    geometry: Geometry,
    seed: int,
) -> CropLoader:
    if stream.source not in sources:
        raise ValueError(
            f"stream {stream.name!r} takes images from {stream.source!r}, which is no source; there is "
            f"{', '.join(sources)}"
        )
    source, chosen = sources[stream.source]
    indices = np.asarray(chosen, np.int64)
    if stream.labels:
        indices = indices[source.labels_exist()[indices]]
    if not len(indices):
        kind = "labelled image" if stream.labels else "image"
        raise ValueError(
            f"stream {stream.name!r} needs images, but {stream.source!r} has no {kind}; add some, or train "
            "with another method"
        )
    return CropLoader(
        source=source,
        indices=indices,
        sampler=Sampler(stream.name, len(indices), seed),
        geometry=geometry,
        keys=stream.keys,
        labels=stream.labels,
    )


def _killed(code: int) -> utils.SystemFault:
    """The error for a worker process that ended with this exit code; negative numbers are signals."""
    what, remedy = f"ended with exit code {code}", "set data.workers = 0 to load without processes"
    if code == -signal.SIGBUS:
        what = "was killed by SIGBUS: /dev/shm is full"
        remedy = "enlarge it (docker run --shm-size), or lower data.workers"
    elif code == -signal.SIGKILL:
        what = "was killed by SIGKILL, as the system does when memory is full"
        remedy = "free some memory, or lower data.workers"
    elif code < 0:
        what = f"was killed by signal {-code}"
    return utils.SystemFault(
        f"a process that loads images {what}; {remedy}, and repeat the same command"
    )


class BatchStream:
    """An endless iterator over host batches that stops its workers when closed."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[HostBatch]:
        return self

    def __next__(self) -> HostBatch:
        """The next batch.

        Raises:
          ValueError: an image or label that cannot be used, also when a worker process found it.
          SystemFault: a worker process was killed.
        """
        try:
            with utils.writing(_SHARED_MEMORY):  # images come as ValueError
                batch = next(self._iterator)
        except RuntimeError as error:
            ended = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if ended is None:
                raise
            raise _killed(int(ended[1])) from error
        # A copy: arrays in shared memory are unmapped with the batch, while JAX may still read them.
        return {name: np.array(array) for name, array in batch.items()}

    def close(self) -> None:
        """Stop threads and worker processes; calling it again does nothing."""
        self._iterator.close()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
