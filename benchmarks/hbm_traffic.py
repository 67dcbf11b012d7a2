"""Bytes that a compiled TPU program moves between its memory (HBM) and the chip, and the share of padding.

In: the text of an optimised TPU program. Its shapes have layouts such as `bf16[105,64,64]{0,2,1:T(8,128)}`:
the order of dimensions from the fastest, the tile to which the two fastest are padded, and `S(1)` for values
in the chip's fast memory (VMEM; `S(3)` on v4: CMEM). Out: bytes with and without padding. It is an estimate:
every operation reads its operands and writes its results once; of an array that it slices or updates in
place, the slice.
"""

from __future__ import annotations

import dataclasses
import math
import re

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1}
_SHAPE = re.compile(rf"({'|'.join(_BYTES)})\[([\d,]*)\](?:\{{([^}}]*)\}})?")
_TILE = re.compile(r"T\((\d+),(\d+)\)")
_ON_CHIP = re.compile(r"S\([13]\)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
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
    program: dict[str, list[_Instruction]] = {}
    instructions: list[_Instruction] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            instructions = program.setdefault("ENTRY" if head[1] else head[2], [])
        elif found := _INSTRUCTION.match(_COMMENT.sub("", line)):
            root, name, shapes, operation, rest = found.groups()
            arrays = [_Array(*each) for each in _SHAPE.findall(shapes)]
            instructions.append(_Instruction(name, arrays, operation, rest, bool(root)))
    if "ENTRY" not in program:
        raise ValueError("the text has no ENTRY computation: pass Compiled.as_text()")
    return _of_computation(program, "ENTRY")


def _of_computation(program: dict[str, list[_Instruction]], name: str) -> Traffic:
    total, known = Traffic(), dict[str, list[_Array]]()
    for each in program[name]:
        known[each.name] = arrays = each.arrays
        if each.operation in _MOVES_NOTHING or each.operation.endswith("-done"):
            continue
        if each.operation == "while":
            total += _of_computation(program, each.named("body")).times(_rounds(program, each))
        elif each.operation == "slice-start":  # (whole), slice, …: the slice moves
            total += min(arrays, key=lambda array: array.in_hbm.stored or math.inf).in_hbm
        elif each.operation == "copy-start":  # destination, source, …
            total += arrays[0].traffic + arrays[1].traffic
        else:
            read, written = _slices(program, each, known)
            for position, operand in enumerate(each.operands):
                total += _moved(known.get(operand, []), read.get(position))
            for position, array in enumerate(arrays):
                total += _moved([array], written.get(position))
    return total


def _moved(arrays: list[_Array], part: Traffic | None) -> Traffic:
    """Of arrays, or of a part of them; none in fast memory."""
    whole = sum((array.traffic for array in arrays), Traffic())
    return whole if part is None or not whole.stored else part


def _rounds(program: dict[str, list[_Instruction]], loop: _Instruction) -> int:
    """As annotated, or the constant below which the condition keeps the counter."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = program.get(loop.named("condition"), [])
    bounds = [each.rest.split(")")[0] for each in condition if each.operation == "constant"]
    below = any("direction=LT" in each.rest for each in condition)
    return int(bounds[0]) if below and len(bounds) == 1 else 1


_Parts = dict[int, Traffic]
"""What is moved of operands or results of which only a slice is, by position."""


def _slices(
    program: dict[str, list[_Instruction]], given: _Instruction, known: dict[str, list[_Array]]
) -> tuple[_Parts, _Parts]:
    """Slices that an instruction reads of its operands and writes of its results."""
    if given.operation == "dynamic-slice":
        return {0: given.arrays[0].in_hbm}, {}
    if given.operation == "dynamic-update-slice":
        update = known.get(given.operands[1])
        return {0: Traffic()}, {0: update[0].in_hbm} if update else {}
    if given.operation != "fusion":
        return {}, {}
    inner, parameter = dict[str, list[_Array]](), dict[str, int]()
    read, made, written = dict[int, list[Traffic | None]](), dict[str, Traffic | None](), _Parts()
    for each in program.get(given.named("calls"), []):
        inner[each.name] = each.arrays
        if each.operation == "parameter":
            parameter[each.name] = int(each.rest.split(")")[0])
        elif each.operation == "bitcast" and each.operands[0] in parameter:
            parameter[each.name] = parameter[each.operands[0]]
        else:
            of_operands, of_results = _slices(program, each, inner)
            for position, operand in enumerate(each.operands):
                if operand in parameter:
                    read.setdefault(parameter[operand], []).append(of_operands.get(position))
            source = each.operands[0] if each.operation == "bitcast" else None
            made[each.name] = made.get(source) if source else of_results.get(0)
        if each.root:
            results = each.operands if each.operation == "tuple" else [each.name]
            parts = {position: made.get(name) for position, name in enumerate(results)}
            written = {position: part for position, part in parts.items() if part is not None}
    whole = {position for position, parts in read.items() if None in parts}
    slices = {at: sum(parts, Traffic()) for at, parts in read.items() if at not in whole}
    return slices, written


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    arrays: list[_Array]
    operation: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split("), ")[0])

    def named(self, attribute: str) -> str:
        """The computation that it calls as `attribute`, or nothing."""
        found = re.search(rf"\b{attribute}=%?([\w.-]+)", self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class _Array:
    dtype: str
    shape: str
    layout: str

    @property
    def traffic(self) -> Traffic:
        """Bytes in HBM, none for a value in fast memory."""
        return Traffic() if _ON_CHIP.search(self.layout) else self.in_hbm

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
