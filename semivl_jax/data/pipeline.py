"""The training stream: batches of uint8 crops, in an order that nothing but the seed and the step decides.

Out: dicts of NumPy arrays, one batch of this process's share,

    labelled/image    uint8 [b, s, s, 3]    labelled/label   uint8 [b, s, s], 255 = void or padding
    unlabelled/image  uint8 [b, s, s, 3]    unlabelled/size  int32 [b, 2]
    partner/image     uint8 [b, s, s, 3]    partner/size     int32 [b, 2]    (partner="same_image")

`feed` puts them on the devices as a `types.Batch`. Loading runs in Grain's worker processes, each of which
makes whole batches, or in threads of this process (workers=0). The state of the stream is the next step.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import grain
import numpy as np
from absl import flags

from semivl_jax.data.crops import BatchLoader, CropLoader, Geometry
from semivl_jax.data.sampler import SampleOrder, Share
from semivl_jax.data.source import Source

HostBatch = dict[str, np.ndarray]

Partner = Literal["batch", "same_image"]

# Batches that a worker (or the threads) keeps ready beside the one it makes.
_BUFFER = 2

# The stream has no end of its own; this only bounds the index arithmetic.
_ENDLESS = 2**40


class TrainPipeline:
    """Labelled and unlabelled crops for one process of a run.

    Args:
      source: the training images.
      labelled: record indices of the labelled images.
      unlabelled: record indices of the unlabelled images; empty = supervised training.
      batch: images of each kind per step, over all processes.
      geometry: random scale and crop.
      seed: of order and geometry.
      partner: "same_image" adds a second crop of every unlabelled photo.
      workers: processes that load; 0 = threads of this process.
      process_index: which of the run's processes this is.
      process_count: how many there are.

    Raises:
      ValueError: no labelled image, an image in both lists, a batch that the processes cannot share, a
        negative seed.
    """

    def __init__(
        self,
        source: Source,
        labelled: Sequence[int],
        unlabelled: Sequence[int],
        *,
        batch: int,
        geometry: Geometry,
        seed: int,
        partner: Partner = "batch",
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if not labelled:
            raise ValueError("config.data.split gives no labelled image; label at least one")
        both = set(labelled) & set(unlabelled)
        if both:
            raise ValueError(
                f"image {source.ids[min(both)]!r} is both labelled and unlabelled ({len(both)} images "
                "are); take it out of one of the lists"
            )
        if seed < 0 or workers < 0:
            raise ValueError(
                f"config.seed={seed} and config.data.workers={workers} must be 0 or more"
            )
        self._workers = workers
        self._loader = CropLoader(
            source=source,
            labelled=np.asarray(labelled, np.int64),
            unlabelled=np.asarray(unlabelled, np.int64),
            order=SampleOrder(len(labelled), len(unlabelled), seed),
            share=Share(batch, process_index, process_count),
            geometry=geometry,
            with_partner=partner == "same_image" and len(unlabelled) > 0,
        )

    def ids(self, step: int) -> dict[str, list[str]]:
        """Ids of the images in this process's share of a batch, without loading them."""
        size = self._loader.share.size
        names = self._loader.source.ids
        rows = [self._loader.records(local) for local in range(step * size, (step + 1) * size)]
        return {
            "labelled": [names[labelled] for labelled, _ in rows],
            "unlabelled": [names[unlabelled] for _, unlabelled in rows if unlabelled is not None],
        }

    def batches(self, start_step: int) -> BatchStream:
        """The batches from a step on; use it in a `with` statement, or close it."""
        size = self._loader.share.size
        if not self._workers:
            threads = min(16, os.cpu_count() or 1)
            options = grain.ReadOptions(
                num_threads=threads, prefetch_buffer_size=max(threads, _BUFFER * size)
            )
            images = grain.MapDataset.source(_Counter(start_step * size)).map(self._loader)
            return BatchStream(iter(images.to_iter_dataset(options).batch(size)))
        if not flags.FLAGS.is_parsed():
            # Grain's workers read absl flags; in a notebook or a test nobody has parsed any.
            flags.FLAGS.mark_as_parsed()
        # Every worker makes whole batches, dealt to them in turn: their number changes nothing.
        batches = grain.MapDataset.source(_Counter(start_step)).map(BatchLoader(self._loader))
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        if not self._fits_shared_memory():
            dataset = grain.experimental.WithOptionsIterDataset(
                dataset, grain.experimental.DatasetOptions(min_shm_size=_ENDLESS)
            )
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_BUFFER),
            worker_init_fn=_start_worker,
        )
        return BatchStream(iter(dataset))

    def _fits_shared_memory(self) -> bool:
        """Whether /dev/shm holds all batches under way; containers often have 64 MB, and a worker that
        writes beyond it is killed. Without it batches travel through pipes, which is slower.
        """
        shared = Path("/dev/shm")
        crops = 2 if not len(self._loader.unlabelled) else 3  # counted generously
        pixels = self._loader.share.size * self._loader.geometry.crop**2
        needed = pixels * 4 * crops * self._workers * (_BUFFER + 2)
        return not shared.is_dir() or shutil.disk_usage(shared).free > needed


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
        """
        # A copy, because arrays in shared memory are unmapped when the batch is let go, while JAX may
        # still be reading views of them.
        return {name: np.array(array) for name, array in next(self._iterator).items()}

    def close(self) -> None:
        """Stop threads and worker processes; calling it again does nothing."""
        self._iterator.close()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Counter:
    """A source whose elements are start, start + 1, …"""

    def __init__(self, start: int) -> None:
        self._start = start

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> int:
        return self._start + int(index)


def _start_worker(index: int, count: int) -> None:
    """Runs first in every worker process.

    Ctrl-C and SIGTERM, which schedulers send to every process of a job, are the main process's to handle.
    And when that process is killed, its workers, which would wait for it forever, end as well.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing  # where the worker lives

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
