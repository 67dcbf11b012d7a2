"""Folders in Google Cloud Storage, `gs://BUCKET/FOLDER`; needs the extra `gcs`.

A bucket has no folders, locks or renaming, but a file appears only when it is uploaded whole. Where several
files belong together, the one that readers look for is uploaded last.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from semivl_jax import utils

PREFIX = "gs://"
_SCHEME = re.compile(r"(?:^|=\s*)([A-Za-z][\w+.-]*)://")


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether this is an address in a bucket."""
    return str(path).startswith(PREFIX)


def check_scheme(value: str, key: str, *, bucket: bool) -> None:
    """Checks that a value holds paths of this machine, or, with `bucket`, an address in one.

    Raises:
      ValueError: it has another scheme; the message names the key.
    """
    found = _SCHEME.search(value)
    if found is None or (bucket and re.match(r"gs://[\w.-]{3,}", value)):
        return
    kinds = "a folder, or gs://BUCKET/FOLDER" if bucket else "a path on this machine"
    raise ValueError(
        f"{key} = {value!r} cannot be used: {found[1]}:// is none of them; name {kinds}"
    )


@functools.cache
def _file_system() -> Any:
    try:
        import fsspec  # only buckets need it

        # Without a cache of listings: other processes write as well.
        return fsspec.filesystem("gcs", use_listings_cache=False)
    except ImportError as error:
        raise ValueError(
            f"{PREFIX} needs the extra `gcs` ({error}); pip install 'semivl_jax[gcs]', or pip install gcsfs"
        ) from error


class Folder:
    """A folder of a bucket; files are named by their paths relative to it.

    All methods raise SystemFault where the bucket cannot be reached, does not exist or refuses this user.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._path = self.url.removeprefix(PREFIX)

    def files(self) -> dict[str, int]:
        """Sizes in bytes of all files, by name."""
        with self._faults():
            found = _file_system().find(self._path, detail=True)
        sizes = {path.removeprefix(f"{self._path}/"): info["size"] for path, info in found.items()}
        return {name: size for name, size in sizes.items() if not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """Content of a file; None if it does not exist."""
        with self._faults():
            try:
                return _file_system().cat_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file at once."""
        with self._faults():
            _file_system().pipe_file(f"{self._path}/{name}", content)

    def delete(self, names: Iterable[str]) -> None:
        """Removes files; those that do not exist are no error."""
        with self._faults():
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    _file_system().rm_file(f"{self._path}/{name}")

    def download(
        self, names: Iterable[str], to: Path, *, count: Callable[[int], None] | None = None
    ) -> None:
        """Copies files to a folder, with their times; `count` is called with the bytes of every part."""

        def one(name: str) -> None:
            remote = f"{self._path}/{name}"
            with utils.atomic_write(to / name) as temporary, self._faults():
                _file_system().get_file(remote, str(temporary), callback=_counting(count))
                written = _file_system().info(remote).get("mtime")
                if isinstance(written, datetime.datetime):
                    os.utime(temporary, (written.timestamp(),) * 2)

        for _ in utils.ordered_map(one, names, workers=8):
            pass

    def upload(self, names: Collection[str], folder: Path, *, last: str = "") -> None:
        """Copies files of a folder; those with the file name `last` after all others."""

        def one(name: str) -> None:
            with self._faults():
                _file_system().put_file(str(folder / name), f"{self._path}/{name}")

        ends = [name for name in names if Path(name).name == last]
        for group in ([name for name in names if name not in ends], ends):
            for _ in utils.ordered_map(one, group, workers=8):
                pass

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except ValueError:
            raise
        except Exception as error:  # gcsfs, google.auth and aiohttp have errors of many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            raise utils.SystemFault(
                f"{self.url}: {reason}; check that the bucket exists, that it can be reached and that this "
                "user may read and write it, and repeat the same command"
            ) from error


def fetch(url: str, wanted: Callable[[str], bool]) -> Path:
    """A copy, until this process ends, of the files whose names are `wanted`; it has the folder's name."""
    remote, place = Folder(url), Path(tempfile.mkdtemp(prefix="semivl_jax-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    names = {name: size for name, size in remote.files().items() if wanted(name)}
    copy = place / remote.url.rsplit("/", 1)[-1]
    copy.mkdir()
    with utils.Progress(f"reading {url}", total=sum(names.values()), unit="B") as shown:
        remote.download(names, copy, count=shown.update)
    return copy


def _counting(count: Callable[[int], None] | None) -> Any:
    import fsspec

    callback = fsspec.Callback()
    if count is not None:
        callback.relative_update = count
    return callback
