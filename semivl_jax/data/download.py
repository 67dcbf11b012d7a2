"""Downloads: resumed after an interruption, verified, renamed when complete.

In: a `RemoteFile` (address, and size and SHA-256 where they are known). Out: a path. A file with its final
name is complete; an unfinished one is called `NAME.part`. `NAME.sha256` beside a file holds the checksum it
had when it was verified, so that a file of many gigabytes is read once, not at every start. Where no checksum
is known beforehand, that of the first download is stored there, and one that differs later is refused.

The download manager of TFDS is not used because it starts a broken file from its beginning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from semivl_jax import utils

_CHUNK = 1 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP errors after which another attempt is made
_TIMEOUT = 60.0  # seconds without an answer
_ATTEMPTS = 5  # in a row that brought no new byte
_WAIT = 2.0  # seconds before the second attempt; doubled every time


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to download.

    Attributes:
      name: its name on disk.
      url: its address; empty: the download needs a login.
      sha256: 64 hexadecimal digits; empty: not known.
      size: bytes; 0: not known.
      page: the web page that links to it.
    """

    name: str
    url: str = ""
    sha256: str = ""
    size: int = 0
    page: str = ""


def fetch(file: RemoteFile, directory: Path) -> Path:
    """The verified file in `directory`, downloaded if it is not there yet.

    Processes that download into the same directory wait for each other.

    Raises:
      ValueError: the file cannot be downloaded (no network, no such file, disk full) or is
        not the expected one. A download with a wrong checksum is removed.
    """
    path = directory / file.name
    if path.exists() and _stored_checksum(path):  # no lock: the folder may be read-only
        verify(file, path, notes=directory)
        return path
    with only_one(directory):
        if path.exists():
            verify(file, path, notes=directory)
            return path
        part = directory / f"{file.name}.part"
        _download(file, part)
        _accept(file, part, path)
    return path


def verify(file: RemoteFile, path: Path, *, notes: Path) -> None:
    """Checks that an existing file is the expected one; nothing is removed.

    Its checksum is stored in the folder `notes`, since that of `path` may be read-only.

    Raises:
      ValueError: another size or checksum.
    """
    found = path.stat().st_size
    wrong = f"{path} is not the expected file"
    remedy = "delete it and start again, or put the right file there"
    named = notes / file.name
    stored = _stored_checksum(named)
    # Of another size than then: read it again.
    checksum = stored["sha256"] if stored and stored["size"] == found else ""
    if file.size and found != file.size:
        raise ValueError(f"{wrong}: {found} bytes instead of {file.size}; {remedy}")
    if not checksum:
        checksum = sha256(path)
        if not file.sha256 and stored and stored["sha256"] != checksum:
            raise ValueError(
                f"{wrong}: its SHA-256 is {checksum}, but {_note(named)} has {stored['sha256']}; "
                f"{remedy}"
            )
        _store_checksum(named, checksum, size=found)
    if file.sha256 and checksum != file.sha256:
        _note(named).unlink(missing_ok=True)
        raise ValueError(f"{wrong}: SHA-256 {checksum} instead of {file.sha256}; {remedy}")


def status(file: RemoteFile, directory: Path) -> tuple[bool, str]:
    """(whether it is there, a description); reads no contents and changes nothing."""
    path, part = directory / file.name, directory / f"{file.name}.part"
    if path.exists():
        size = path.stat().st_size
        if file.size and size != file.size:
            return False, f"{size} bytes instead of {file.size}"
        return True, f"there, {_bytes(size)}" + (
            "" if _stored_checksum(path) else ", not yet verified"
        )
    if part.exists():
        share = f" of {_bytes(file.size)}" if file.size else ""
        return False, f"{_bytes(part.stat().st_size)}{share} downloaded"
    if not file.url:
        return False, f"missing; needs a login at {file.page}, then put it into {directory}"
    return False, f"missing; will be downloaded from {file.url}"


def sha256(path: Path) -> str:
    """Checksum of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(file: RemoteFile, part: Path) -> None:
    """Appends to `part` until the file is complete."""
    failures, wait = 0, _WAIT
    while True:
        before = _size(part)
        try:
            if _attempt(file, part):
                return
            reason: object = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _TRANSIENT:
                raise ValueError(
                    f"{file.url} answers {error.code} ({error.reason}); download {file.name} from "
                    f"{file.page or 'elsewhere'} and put it into {part.parent}"
                ) from error
            reason = error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                _discard(part)
                raise ValueError(
                    f"{part.parent} is full: {file.name} does not fit; make room or choose another "
                    "directory, no incomplete file was left"
                ) from error
            reason = error
        except http.client.HTTPException as error:
            reason = error
        if _size(part) > before:
            failures, wait = 0, _WAIT
        failures += 1
        if failures >= _ATTEMPTS:
            raise ValueError(
                f"{file.url} cannot be downloaded ({reason}; {_bytes(_size(part))} are here); start again "
                f"when the network is back, it goes on from there, or put {file.name} into {part.parent}"
            )
        time.sleep(wait)
        wait *= 2


def _attempt(file: RemoteFile, part: Path) -> bool:
    """One connection; returns whether the file is complete."""
    start = _size(part)
    headers = {"User-Agent": "semivl_jax", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        tag = _tag_file(part).read_text(encoding="utf8") if _tag_file(part).exists() else ""
        if tag:
            headers["If-Range"] = tag  # if the file has changed, all of it is sent
    request = urllib.request.Request(file.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()
        # There are no bytes after these: the file is complete, or it is another one.
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return True
        _discard(part)
        return False
    with answer:
        if answer.status != 206:
            start = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        free = shutil.disk_usage(part.parent).free
        if int(length or 0) > free:
            raise ValueError(
                f"{part.parent} has {_bytes(free)} free, but {_bytes(int(length))} of {file.name} are "
                "still missing; make room or choose another directory"
            )
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        _tag_file(part).write_text("" if tag.startswith("W/") else tag, encoding="utf8")
        _copy(answer, part, start=start, total=total, name=file.name)
    return total is None or _size(part) == total


def _copy(stream: Any, part: Path, *, start: int, total: int | None, name: str) -> None:
    bar = utils.Progress(name, total=total, unit="B", initial=start)
    with bar, part.open("ab" if start else "wb") as out:
        # read1 returns what has arrived: a broken connection loses nothing.
        while chunk := stream.read1(_CHUNK):
            out.write(chunk)
            bar.update(len(chunk))


def _accept(file: RemoteFile, part: Path, path: Path) -> None:
    """Verifies a finished download and renames it, or removes it."""
    checksum, size = sha256(part), _size(part)
    stored = _stored_checksum(path)
    expected = file.sha256 or (stored["sha256"] if stored else "")
    if (expected and checksum != expected) or (file.size and size != file.size):
        _discard(part)
        raise ValueError(
            f"{file.url} is not the expected file: {size} bytes with SHA-256 {checksum} instead of "
            f"{file.size or 'any number of'} bytes with {expected or 'any'}; it was removed, try again "
            f"or put the right file into {path.parent}"
        )
    _store_checksum(path, checksum, size=size)  # before the file has its name
    os.replace(part, path)
    _tag_file(part).unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _stored_checksum(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(_note(path).read_text(encoding="utf8"))
    except (FileNotFoundError, ValueError):
        return None


def _store_checksum(path: Path, checksum: str, *, size: int) -> None:
    utils.write_text(_note(path), json.dumps({"sha256": checksum, "size": size}) + "\n")


def _tag_file(part: Path) -> Path:
    """Holds the ETag or date of what `part` was begun with."""
    return part.with_name(f"{part.name}.tag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bytes(size: float) -> str:
    return tqdm.format_sizeof(size, "B")


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the file lock of a folder; the operating system releases it when the process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
