"""The start of Grain's worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import cv2


def start(index: int, count: int) -> None:
    """Runs first in every worker process.

    Ctrl-C and SIGTERM, which schedulers send to every process of a job, are the main process's to handle.
    When that process is killed, its workers, which would wait for it forever, end as well.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
