"""Members of archives by file name, read in place: zip, tar, or a folder they were unpacked into.

Nothing is unpacked to disk. `read` may be called from many threads. Prepared masks of third parties are
found by their file names in any folder of the archive.
"""

from __future__ import annotations

import functools
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath


class Archive:
    """Files of one archive; paths inside it are text with forward slashes."""

    def __init__(self, path: Path, readers: Mapping[str, Callable[[], bytes]]) -> None:
        self.path = path
        self._readers = readers

    def read(self, name: str) -> bytes:
        """Contents of a member.

        Raises:
          ValueError: the archive is damaged at this place.
        """
        try:
            return self._readers[name]()
        except (zipfile.BadZipFile, zlib.error, EOFError, tarfile.TarError) as error:
            raise ValueError(
                f"{self.path} is damaged at {name} ({error}); delete it, and the file will be "
                "downloaded again"
            ) from error

    def find(self, *, suffix: str, folder: str = "") -> dict[str, str]:
        """{file name without `suffix`: path} of the files that end in it.

        `folder`, such as "images/training", restricts to paths that contain these folders.

        Raises:
          ValueError: two such files share their name.
        """
        found: dict[str, str] = {}
        inside = f"/{folder}/" if folder else "/"
        for name in sorted(self._readers):
            path = PurePosixPath(name)
            if not path.name.endswith(suffix) or inside not in f"/{path.parent}/":
                continue
            stem = path.name.removesuffix(suffix)
            if stem in found:
                raise ValueError(
                    f"{self.path} holds both {found[stem]} and {name}; unpack it into "
                    f"{self.path.with_suffix('')} and remove one of them"
                )
            found[stem] = name
        return found


def open_archive(path: Path) -> Archive:
    """Opens a .zip or .tar file, or a folder.

    Raises:
      ValueError: the file is no archive of its kind.
    """
    try:
        if path.is_dir():
            files = (p for p in path.rglob("*") if p.is_file())
            readers = {p.relative_to(path).as_posix(): p.read_bytes for p in files}
        elif path.suffix == ".zip":
            readers = _zip_readers(path)
        elif path.suffix == ".tar":
            readers = _tar_readers(path)
        else:
            raise ValueError(f"{path} is neither .zip nor .tar nor a folder; unpack it")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{path} is no complete archive ({error}); delete it, and the file will be downloaded again"
        ) from error
    return Archive(path, {name: reader for name, reader in readers.items() if not _ignored(name)})


def _ignored(name: str) -> bool:
    """Whether it is a file that some programs add to archives."""
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"


def _zip_readers(path: Path) -> dict[str, Callable[[], bytes]]:
    # One handle for all threads: only reading the file is serialised, not decompression.
    archive = zipfile.ZipFile(path)
    members = [info for info in archive.infolist() if not info.is_dir()]
    return {info.filename: functools.partial(archive.read, info) for info in members}


def _tar_readers(path: Path) -> dict[str, Callable[[], bytes]]:
    def read(start: int, size: int) -> bytes:
        with path.open("rb") as stream:
            data = os.pread(stream.fileno(), size, start)
        if len(data) != size:
            raise EOFError(f"{len(data)} of {size} bytes")
        return data

    with tarfile.open(path, "r:") as archive:  # uncompressed: members are stored as they are
        members = [info for info in archive if info.isreg()]
    return {m.name: functools.partial(read, m.offset_data, m.size) for m in members}
