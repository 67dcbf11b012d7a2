"""Class lists: names, concepts that describe them, colours of masks.

In: text lines, one class each, the first for mask value 0:

    name                              described by its name
    name: concept, concept            described by concepts
    name #RRGGBB                      with the colour of its masks, before or after ": concept, concept"
    name:R,G,B:parts:actions          as in CVAT's labelmap.txt; also name R G B, name,R,G,B and R G B name
    0 name                            numbered, from 0
    __ignore__ [#RRGGBB]              no class: LabelMe's first line, and colours that do not count
    # text                            a comment; also the heads of tables of other tools

Out: `ClassList`. Anything else is an error that names the line, since a line that is skipped or misread would
shift the values of all classes after it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from semivl_jax.data.dataset_info import IGNORE_INDEX

Colour = tuple[int, int, int]

IGNORED = "__ignore__"
"""LabelMe's name for what is not labelled."""

_HEX = re.compile(
    r"(?P<name>.*?)[\s:,;]*(?:^|[\s:,;])#(?P<hex>[0-9a-fA-F]{6})\s*(?::(?P<rest>.*))?"
)
_CVAT = re.compile(r"(?P<name>[^:]+):(?P<rgb>\d+\s*,\s*\d+\s*,\s*\d+)?:[^:]*:[^:]*")
_TABLE = re.compile(r"(?P<name>.+?)[\s,;:]+(?P<rgb>\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3})")
_RGB_FIRST = re.compile(r"(?P<rgb>\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3})[\s,;:]+(?P<name>\D.*)")
_HEADER = re.compile(r"(name|class|label)s?,\s*r(ed)?,\s*g(reen)?,\s*b(lue)?|pixel value,\s*class")
_NUMBERED = re.compile(r"(\d+)\s*[\s:.,;]\s*(?=\D)(.+)")


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes in the order of their mask values; `colours` are label values by RGB colour, or empty."""

    names: tuple[str, ...]
    definitions: tuple[tuple[str, ...], ...]
    colours: dict[Colour, int]


@dataclasses.dataclass(frozen=True)
class _Line:
    """A class of a list: its line, name, concepts as they are written (None: no colon) and colour."""

    number: int
    name: str
    concepts: str | None = None
    colour: Colour | None = None


def parse_classes(lines: Sequence[str], *, where: str) -> ClassList:
    """Classes of text lines as above; empty lines may only follow the last class.

    Raises:
      ValueError: an empty line between classes, a line that is none of the above, a repeated name or
        colour, an empty concept, colours for only some classes; `where` names the file.
    """
    classes: list[_Line] = []
    ignored: list[Colour] = []
    empty = 0
    for number, text in _unnumbered(lines, where=where):
        at = f"{where} line {number}"
        if not text:
            empty = empty or number
            continue
        if text == "#" or text.startswith("# "):
            continue
        if empty:
            raise ValueError(
                f"{where} line {empty} is empty, so it is not clear whether the class in line {number} has "
                f"the mask value {len(classes)}; remove the empty line, or name the class"
            )
        line = _parse(text, number, at)
        if line.name == IGNORED:
            if line.colour is None and classes:
                raise ValueError(
                    f"{at}: {IGNORED} is no class and has no value; put it first, or give it a colour"
                )
            ignored += [line.colour] if line.colour else []
            continue
        classes.append(line)
    _check(classes, where=where)
    return ClassList(
        tuple(line.name for line in classes),
        tuple(_concepts(line, where=where) for line in classes),
        _colours(classes, ignored, where=where),
    )


def _unnumbered(lines: Sequence[str], *, where: str) -> list[tuple[int, str]]:
    """(number, text) of every line, without numbers of the classes that count from 0."""
    texts = [(number, " ".join(line.split())) for number, line in enumerate(lines, start=1)]
    if texts and _HEADER.fullmatch(texts[0][1].lower()):
        del texts[0]
    named = [(number, text) for number, text in texts if text and not text.startswith("#")]
    numbered = [_NUMBERED.fullmatch(text) for _, text in named]
    if len(named) < 2 or not all(numbered):
        return texts
    for expected, (match, (number, _)) in enumerate(zip(numbered, named, strict=True)):
        if int(match[1]) != expected:
            raise ValueError(
                f"{where} line {number} has the number {match[1]}, but is class {expected}, counted from 0; "
                "write one name per line in the order of the mask values 0, 1, 2, …"
            )
    plain = {number: match[2] for match, (number, _) in zip(numbered, named, strict=True)}
    return [(number, plain.get(number, text)) for number, text in texts]


def _parse(text: str, number: int, at: str) -> _Line:
    if found := _HEX.fullmatch(text):
        value = int(found["hex"], 16)
        rgb = value >> 16, value >> 8 & 255, value & 255
        name, colon, concepts = found["name"].partition(":")
        if colon and found["rest"] is not None:
            raise ValueError(f"{at} has concepts before and after its colour; write them after it")
        line = _Line(number, name.strip(), concepts if colon else found["rest"], rgb)
    elif re.search(r"(^|[\s:,;])#", text):
        raise ValueError(
            f"{at} has a # that begins no colour; write name #RRGGBB, or # and a space"
        )
    elif found := _CVAT.fullmatch(text) or _TABLE.fullmatch(text) or _RGB_FIRST.fullmatch(text):
        line = _Line(number, found["name"].strip(), None, _rgb(found["rgb"], at))
    else:
        name, colon, rest = text.partition(":")
        line = _Line(number, name.strip(), rest if colon else None)
    if not line.name:
        raise ValueError(f"{at} has concepts or a colour but no class name; write the name first")
    if line.name[0] in '[]{}<>"' or line.name.isdecimal():
        raise ValueError(f"{at} is {text[:40]!r}; write one class name per line, as plain text")
    return dataclasses.replace(line, name="background") if line.name == "_background_" else line


def _rgb(text: str | None, at: str) -> Colour | None:
    if text is None:
        return None
    red, green, blue = (int(part) for part in re.findall(r"\d+", text))
    if max(red, green, blue) > 255:
        raise ValueError(f"{at} has the colour {text}; its parts are 0 to 255")
    return red, green, blue


def _check(classes: Sequence[_Line], *, where: str) -> None:
    seen: set[str] = set()
    for line in classes:
        if line.name in seen:
            raise ValueError(
                f"{where} line {line.number} names the class {line.name!r} twice; rename or remove one of "
                "them"
            )
        seen.add(line.name)


def _concepts(line: _Line, *, where: str) -> tuple[str, ...]:
    if line.concepts is None:
        return (line.name,)
    # A comma at the end is no further concept.
    parts = line.concepts.strip().removesuffix(",").split(",")
    concepts = tuple(" ".join(part.split()) for part in parts)
    if not all(concepts):
        raise ValueError(
            f"{where} line {line.number}: class {line.name!r} has an empty concept; name it, or remove a "
            "comma or the colon"
        )
    odd = [concept for concept in concepts if ":" in concept or concept.isdecimal()]
    if odd:
        raise ValueError(
            f"{where} line {line.number}: class {line.name!r} has the concept {odd[0]!r}; write "
            "name: concept, concept, or name #RRGGBB for a colour"
        )
    return concepts


def _colours(
    classes: Sequence[_Line], ignored: Sequence[Colour], *, where: str
) -> dict[Colour, int]:
    plain = [line for line in classes if line.colour is None]
    if plain and (ignored or len(plain) < len(classes)):
        raise ValueError(
            f"{where} line {plain[0].number} gives the class {plain[0].name!r} no colour, but other "
            "lines have one; give every class one, or none"
        )
    colours: dict[Colour, int] = {}
    if plain:
        return colours
    for value, line in enumerate(classes):
        if line.colour in colours:
            other = classes[colours[line.colour]].name
            raise ValueError(
                f"{where} line {line.number} gives {line.name!r} the colour of {other!r}; masks cannot tell "
                "them apart, change or merge them"
            )
        colours[line.colour] = value
    for colour in ignored:
        if colours.setdefault(colour, IGNORE_INDEX) != IGNORE_INDEX:
            raise ValueError(f"{where} gives {IGNORED} the colour of a class; change one of them")
    return colours
