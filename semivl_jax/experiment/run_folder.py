"""Where a run keeps its files: a folder of this machine, or one in a bucket.

In a bucket, all processes write the checkpoints there directly. Everything else, which libraries append to,
rename and link, is written to a folder of this machine and copied by the first process: before every
checkpoint and at the end. So a checkpoint in the bucket never is ahead of its logs and `serving/`, and a run
whose process or machine is gone goes on from the bucket alone, on any machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from etils import epath

from semivl_jax import buckets, caches, utils
from semivl_jax.experiment import lock
from semivl_jax.train import distributed
from semivl_jax.train.checkpoint import Directory
from semivl_jax.weights import checksums

CHECKPOINTS = "checkpoints"
_NOT_READ = (CHECKPOINTS, "serving", "tensorboard", lock.FILE)
"""Parts that a run writes without reading what it wrote before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A working directory that this process writes.

    Attributes:
      name: as the user gave it.
      path: files other than checkpoints, on this machine.
      checkpoints: there, or in the bucket.
      locked: whether no other process writes the working directory.
      save: brings `path` into the bucket; nothing where `path` is the working directory itself.
    """

    name: str
    path: Path
    checkpoints: Directory
    locked: bool = True
    save: Callable[[], None] = lambda: None


@contextlib.contextmanager
def opened(workdir: str, *, required: bool = True) -> Iterator[RunFolder]:
    """The working directory, locked until the block ends.

    On this machine, not if `required` is false and another process holds the lock.

    Raises:
      ValueError: another process writes it.
      SystemFault: the bucket cannot be used.
    """
    if not buckets.is_bucket(workdir):
        path = utils.user_path(workdir)
        with lock.one_writer(path, required=required) as locked:
            yield RunFolder(name=workdir, path=path, checkpoints=path / CHECKPOINTS, locked=locked)
        return
    remote = buckets.Folder(workdir)
    place = _place(remote.url)
    with lock.one_writer(place), lock.lease(remote) as lease:
        mirror = _Mirror(remote, place / "files", lease)
        distributed.main_first(mirror.pull)
        try:
            yield RunFolder(
                name=remote.url,
                path=mirror.path,
                checkpoints=epath.Path(remote.url) / CHECKPOINTS,
                save=mirror.push,
            )
        except ValueError as error:
            raise ValueError(str(error).replace(str(mirror.path), remote.url)) from error
        finally:
            mirror.push()
            shutil.rmtree(mirror.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                place.rmdir()  # in the first process it has the lock


def _place(url: str) -> Path:
    """The folder of this machine and process for a run in a bucket, the same when it is resumed."""
    folder = Path(utils.CACHE).expanduser() / "runs"
    reason = caches.unwritable(folder)
    if reason:
        folder = caches.temporary_folder() / "runs"
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return folder / f"{url.rsplit('/', 1)[-1]}-{digest}-{jax.process_index()}"


class _Mirror:
    """The files of a bucket's folder on this machine; `_known` has size and time of what both have."""

    def __init__(self, remote: buckets.Folder, path: Path, lease: lock.Lease | None) -> None:
        self.path, self._remote, self._lease = path, remote, lease
        self._known: dict[str, tuple[int, int]] = {}

    def pull(self) -> None:
        """Makes the folder what the bucket has."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        names = [name for name in self._remote.files() if name.partition("/")[0] not in _NOT_READ]
        self._remote.download(names, self.path)
        self._known = self._here()

    def push(self) -> None:
        """Copies what changed and removes what is gone, in the first process.

        Raises:
          ValueError: another process has taken over the folder in the bucket.
        """
        if self._lease is None:
            return
        self._lease.check()
        here = self._here()
        changed = [name for name, state in here.items() if self._known.get(name) != state]
        self._remote.upload(changed, self.path, last=checksums.FILE)
        self._remote.delete(self._known.keys() - here.keys())
        self._known = here

    def _here(self) -> dict[str, tuple[int, int]]:
        files = {
            path.relative_to(self.path).as_posix(): path.stat()
            for path in sorted(self.path.rglob("*"))
            if path.is_file()
        }
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in files.items()}
