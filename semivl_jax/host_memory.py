"""Memory of this process: fewer page faults, nothing kept that the compiler has freed, rarely looked through.

A step on the CPU asks the system for gigabytes and gives them back, every time; in pages of 4 KiB half a
second of every step goes into filling page tables. glibc asks for huge pages only if told so before a
process starts. What it has freed it keeps for later, which after compiling is more than a gigabyte that
the step then comes on top of. On other systems than Linux neither does anything. Python's garbage collector
looks at every new object soon and at all old ones now and then, in vain while a step is traced.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_THRESHOLDS = (50_000, 20, 50)  # new objects until a look at them; looks until one at older ones
_WORTHWHILE_S = 1.0  # a compilation that was shorter leaves little behind


def restart_with_huge_pages() -> None:
    """Starts the running command once more in this process, with huge pages; to be called first.

    Not where the environment variable GLIBC_TUNABLES exists (an empty one switches this off), and not
    where the system gives huge pages to everybody or to nobody.
    """
    if TUNABLES in os.environ or not sys.orig_argv or not _on_request():
        return
    os.environ[TUNABLES] = _HUGE_PAGES
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_request() -> bool:
    try:
        return "[madvise]" in _MODE.read_text(encoding="utf8")
    except OSError:
        return False


def give_back() -> None:
    """Returns to the system what was freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def give_back_after_compiling() -> None:
    """Calls `give_back` after every longer compilation from now on."""
    import jax

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == _COMPILED and seconds > _WORTHWHILE_S:
            give_back()

    jax.monitoring.register_event_duration_secs_listener(listen)


def collect_rarely() -> None:
    """Lets Python look for garbage far less often, and never among what is there already.

    Tracing makes millions of objects that stay, so that a sixth of its time went into looking through them.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
