"""Files from the internet: resumed where they broke off, verified, renamed into place when whole.

In: a `RemoteFile` (address, and size and SHA-256 where they are known). Out: a path. A file that carries
its final name is complete; what is on its way is called `NAME.part`. Beside a file lies `NAME.sha256` with
the checksum it had when it was verified, so that a file of many gigabytes is read once, not at every start.
Where no checksum was known beforehand, that of the first download is noted there and a later
download that differs is refused.

Standard library only. The download manager of TFDS is not used because it starts a broken file from its
beginning.
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

from semivl_jax import utils

_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one a moment later


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What is known of a file before it is here.

    Attributes:
      name: its name on disk.
      url: where it is; empty: no address leads to it without a login.
      sha256: 64 hexadecimal digits; empty: not known.
      size: bytes; 0: not known.
      page: where a person finds it.
    """

    name: str
    url: str = ""
    sha256: str = ""
    size: int = 0
    page: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to try: seconds until a silent server is given up, attempts in a row without a new
    byte, and seconds before the second attempt (doubled every time).
    """

    timeout: float = 60.0
    attempts: int = 5
    wait: float = 2.0


def fetch(file: RemoteFile, directory: Path, *, patience: Patience | None = None) -> Path:
    """The verified file in `directory`, downloaded if it is not there yet.

    Processes that want the same directory wait for each other.

    Raises:
      ValueError: the file cannot be had (no address, no network, no such file, disk full) or is not
        what was expected; the sentence says what to do. A download with a wrong checksum is removed.
    """
    path = directory / file.name
    if path.exists() and _noted(path):  # perhaps where nobody may write, so no lock
        verify(file, path, notes=directory)
        return path
    with only_one(directory):
        if not path.exists():
            if not file.url:
                raise ValueError(
                    f"{path} is missing and needs a login; download {file.name} from {file.page} and "
                    f"put it into {directory}"
                )
            part = directory / f"{file.name}.part"
            _download(file, part, patience or Patience())
            _accept(file, part, path)
        else:
            verify(file, path, notes=directory)
    return path


def verify(file: RemoteFile, path: Path, *, notes: Path) -> None:
    """Makes sure that a file that is there is the expected one; nothing is removed.

    What is known of it afterwards is noted in the folder `notes`, since `path` may lie where nobody
    may write.

    Raises:
      ValueError: another size or checksum.
    """
    found = path.stat().st_size
    wrong = f"{path} is not the expected file"
    remedy = "delete it and start again, or put the right file there"
    named = notes / file.name
    noted = _noted(named)
    # Edited since it was noted: read it again.
    checksum = noted["sha256"] if noted and noted["size"] == found else ""
    if file.size and found != file.size:
        raise ValueError(f"{wrong}: {found} bytes instead of {file.size}; {remedy}")
    if not checksum:
        checksum = sha256(path)
        if not file.sha256 and noted and noted["sha256"] != checksum:
            raise ValueError(
                f"{wrong}: its SHA-256 is {checksum}, but {_note(named)} says {noted['sha256']}; "
                f"{remedy}"
            )
        _write_note(named, checksum, size=found)
    if file.sha256 and checksum != file.sha256:
        _note(named).unlink(missing_ok=True)
        raise ValueError(f"{wrong}: SHA-256 {checksum} instead of {file.sha256}; {remedy}")


def status(file: RemoteFile, directory: Path) -> tuple[bool, str]:
    """(is it there?, words about it); reads no contents and changes nothing."""
    path, part = directory / file.name, directory / f"{file.name}.part"
    if path.exists():
        size = path.stat().st_size
        if file.size and size != file.size:
            return False, f"{size} bytes instead of {file.size}"
        return True, f"there, {human(size)}" + ("" if _noted(path) else ", not yet verified")
    if part.exists():
        share = f" of {human(file.size)}" if file.size else ""
        return False, f"{human(part.stat().st_size)}{share} downloaded"
    if not file.url:
        return False, f"missing; needs a login at {file.page}, then put it into {directory}"
    return False, f"missing; will be downloaded from {file.url}"


def sha256(path: Path) -> str:
    """Checksum of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def human(size: float) -> str:
    """Bytes in a unit that people read."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _download(file: RemoteFile, part: Path, patience: Patience) -> None:
    """Fills `part`, going on where it ends, until everything is there."""
    failures, wait = 0, patience.wait
    while True:
        before = _size(part)
        try:
            if _attempt(file, part, patience.timeout):
                return
            reason: object = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _PASSING:
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
                    "directory, nothing half-made was left"
                ) from error
            reason = error
        except http.client.HTTPException as error:
            reason = error
        if _size(part) > before:
            failures, wait = 0, patience.wait
        failures += 1
        if failures >= patience.attempts:
            raise ValueError(
                f"{file.url} cannot be downloaded ({reason}; {human(_size(part))} are here); start again "
                f"when the network is back, it goes on from there, or put {file.name} into {part.parent}"
            )
        time.sleep(wait)
        wait *= 2


def _attempt(file: RemoteFile, part: Path, timeout: float) -> bool:
    """One connection; returns whether the file is complete."""
    start, validator = _size(part), _validator(part)
    headers = {"User-Agent": "semivl_jax", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator  # the file has changed: send all of it
    request = urllib.request.Request(file.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()
        # Nothing comes after what is here: it is complete, or it is not this file.
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return True
        _discard(part)
        return False
    with answer:
        if answer.status != 206:
            start = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _check_room(file, part, missing=0 if length is None else int(length))
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        _validator_file(part).write_text("" if tag.startswith("W/") else tag, encoding="utf8")
        _copy(answer, part, start=start, total=total, name=file.name)
    return total is None or _size(part) == total


def _copy(stream: Any, part: Path, *, start: int, total: int | None, name: str) -> None:
    bar = utils.Progress(name, total=total, unit="B", initial=start)
    with bar, part.open("ab" if start else "wb") as out:
        # read1 hands on what has come: a broken connection loses nothing.
        while chunk := stream.read1(_CHUNK):
            out.write(chunk)
            bar.update(len(chunk))


def _check_room(file: RemoteFile, part: Path, *, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise ValueError(
            f"{part.parent} has {human(free)} free, but {human(missing)} of {file.name} are still "
            "missing; make room or choose another directory"
        )


def _accept(file: RemoteFile, part: Path, path: Path) -> None:
    """Verifies a finished download and gives it its name, or removes it."""
    checksum, size = sha256(part), _size(part)
    noted = _noted(path)
    expected = file.sha256 or (noted["sha256"] if noted else "")
    if (expected and checksum != expected) or (file.size and size != file.size):
        _discard(part)
        raise ValueError(
            f"{file.url} is not the expected file: {size} bytes with SHA-256 {checksum} instead of "
            f"{file.size or 'any number of'} bytes with {expected or 'any'}; it was removed, try again "
            f"or put the right file into {path.parent}"
        )
    # The note first: whoever sees the file also finds its checksum.
    _write_note(path, checksum, size=size)
    os.replace(part, path)
    _validator_file(part).unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _noted(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(_note(path).read_text(encoding="utf8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_note(path: Path, checksum: str, *, size: int) -> None:
    facts = {"sha256": checksum, "size": size}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.sha256.part")
    temporary.write_text(json.dumps(facts) + "\n", encoding="utf8")
    os.replace(temporary, _note(path))


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _validator(part: Path) -> str:
    try:
        return _validator_file(part).read_text(encoding="utf8")
    except FileNotFoundError:
        return ""


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold a folder's file lock, which the operating system releases however the process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
