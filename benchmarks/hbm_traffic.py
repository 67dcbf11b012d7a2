"""Bytes that a compiled TPU program moves between its memory (HBM) and the chip, and the share of padding.

In: the text of an optimised TPU program. Its shapes have layouts such as `bf16[105,64,64]{0,2,1:T(8,128)}`:
the order of dimensions from the fastest, the tile to which the two fastest are padded, and `S(1)` for values
in the chip's fast memory (VMEM). Out: bytes with and without padding. It is an estimate: every operation
reads its operands and writes its results once.
"""

from __future__ import annotations

import dataclasses
import math
import re

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1}
_SHAPE = re.compile(rf"({'|'.join(_BYTES)})\[([\d,]*)\](?:\{{([^}}]*)\}})?")
_TILE = re.compile(r"T\((\d+),(\d+)\)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_COMMENT = re.compile(r"/\*.*?\*/")
_MOVES_NOTHING = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes moved: `stored` with padding, `needed` without."""

    stored: float = 0.0
    needed: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.stored + other.stored, self.needed + other.needed)

    def times(self, count: int) -> Traffic:
        """That of `count` iterations."""
        return Traffic(count * self.stored, count * self.needed)

    @property
    def padding(self) -> float:
        """Share of the stored bytes that is padding."""
        return 1 - self.needed / self.stored if self.stored else 0.0


def of_program(text: str) -> Traffic:
    """Of one run of the program; a loop with an unknown number of iterations counts once."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = computations.setdefault("ENTRY" if head[1] else head[2], [])
        else:
            lines.append(line)
    if "ENTRY" not in computations:
        raise ValueError("the text has no ENTRY computation: pass Compiled.as_text()")
    return _of_computation(computations, "ENTRY")


def _of_computation(computations: dict[str, list[str]], name: str) -> Traffic:
    total, values = Traffic(), dict[str, Traffic]()
    for line in computations[name]:
        found = _INSTRUCTION.match(_COMMENT.sub("", line))
        if found is None:
            continue
        result, shapes, operation, rest = found.groups()
        arrays = [_Array(*each) for each in _SHAPE.findall(shapes)]
        values[result] = sum((each.traffic for each in arrays), Traffic())
        if operation in _MOVES_NOTHING or operation.endswith("-done"):
            continue
        if operation == "while":
            body = re.search(r"body=%?([\w.-]+)", rest)[1]
            rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
            total += _of_computation(computations, body).times(int(rounds[1]) if rounds else 1)
        elif operation == "slice-start":  # (whole), slice, …: the slice moves
            moved = min(arrays, key=lambda each: each.in_hbm.stored or math.inf)
            total += moved.in_hbm
        elif operation == "copy-start":  # destination, source, …
            total += arrays[0].traffic + arrays[1].traffic
        else:
            operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            total += sum((values.get(each, Traffic()) for each in operands), values[result])
    return total


@dataclasses.dataclass(frozen=True)
class _Array:
    dtype: str
    shape: str
    layout: str

    @property
    def traffic(self) -> Traffic:
        """Bytes in HBM, none for a value in fast memory."""
        return Traffic() if "S(1)" in self.layout else self.in_hbm

    @property
    def in_hbm(self) -> Traffic:
        sides = [int(side) for side in self.shape.split(",") if side]
        if not sides:
            return Traffic()
        order = re.match(r"[\d,]+", self.layout)
        fastest = [int(axis) for axis in order[0].split(",")] if order else range(len(sides))[::-1]
        stored = [sides[axis] for axis in fastest]
        tile = _TILE.search(self.layout)
        if tile and len(stored) > 1:
            stored[0], stored[1] = (
                -(-side // int(size)) * int(size)
                for side, size in zip(stored[:2], (tile[2], tile[1]), strict=True)
            )
        size = _BYTES[self.dtype]
        return Traffic(float(size * math.prod(stored)), float(size * math.prod(sides)))
