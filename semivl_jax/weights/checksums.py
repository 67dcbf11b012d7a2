"""SHA-256 of every file of a folder, written with it and compared when it is read.

`SHA256SUMS` has a line per file, as the program `sha256sum` writes and checks it (`sha256sum -c SHA256SUMS`);
its first line is a comment with the SHA-256 of the other lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from semivl_jax import utils

FILE = "SHA256SUMS"
_FIRST = "# SHA-256 of the lines below: "


def write(folder: Path, *, leave_out: Collection[str] = ()) -> None:
    """Writes the file, for all files of the folder and its folders but those named in `leave_out`."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted(name for name in paths if name not in {FILE, *leave_out})
    digests = utils.ordered_map(lambda name: _digest(folder / name), names)
    lines = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    utils.write_text(folder / FILE, f"{_FIRST}{_of_text(lines)}\n{lines}")


def verify(folder: Path, names: Collection[str] | None = None) -> bool:
    """Compares the files of a folder, or those with the `names`; False if it has no SHA256SUMS.

    Raises:
      ValueError: a file is missing or has other bytes; the message names it.
    """
    path = folder / FILE
    while True:
        try:
            text = path.read_text(encoding="utf8")
        except FileNotFoundError:
            return False
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        try:
            _compare(folder, text, names)
            return True
        except ValueError:
            # A run may just have replaced the folder.
            if not path.exists() or path.read_bytes() == text.encode():
                raise


def _compare(folder: Path, text: str, names: Collection[str] | None) -> None:
    first, _, lines = text.partition("\n")
    if first != _FIRST + _of_text(lines):
        raise ValueError(
            f"{folder / FILE} is damaged: its lines have another SHA-256 than its first one says"
        )
    stored = dict(reversed(line.split("  ", 1)) for line in lines.splitlines())
    chosen = [name for name in stored if names is None or name in names]
    for name in chosen:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
    digests = utils.ordered_map(lambda name: _digest(folder / name), chosen)
    for name, digest in zip(chosen, digests, strict=True):
        if digest != stored[name]:
            raise ValueError(f"{folder / name} is damaged: it has another SHA-256 than {FILE} says")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
