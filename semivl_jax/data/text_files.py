"""Text files of users: class lists and lists of images."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8, or in UTF-16 with its byte order mark; Unix or Windows line ends.

    Accented letters are composed (NFC).

    Raises:
      ValueError: text in another encoding, or control characters; with the line.
    """
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text ({error}); save it as UTF-8") from error
    return text_lines(text, where=str(path))


def text_lines(text: str, *, where: str) -> list[str]:
    """Lines of a text, accented letters composed (NFC); ValueError with the line for control characters."""
    lines = unicodedata.normalize("NFC", text).splitlines()
    for number, line in enumerate(lines, start=1):
        odd = [c for c in line if c != "\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
        odd = [c for c in odd if c not in "\u200c\u200d\u00ad"]  # they belong to words
        if odd:
            raise ValueError(
                f"{where} line {number} holds the invisible character U+{ord(odd[0]):04X}, so it is damaged "
                "or no UTF-8 text; remove it, or save the file as UTF-8"
            )
    return lines
