"""Draws architecture.svg: the rooms of the code and which imports which, read from the source.

    python -m docs.draw_architecture

The rows of the table in architecture.md are the boxes, the import statements of the files are the arrows. An
arrow that follows from others (a imports b, b imports c, a imports c) is left out. Filled boxes compute on
the device (they import jax.numpy or flax), the others run on the host. `tests/test_architecture.py`
compares the committed drawing with what this makes.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "semivl_jax"
DRAWING = HERE / "architecture.svg"
_ROW, _LINE, _LETTER, _GAP, _WIDTH = 100, 17, 7.9, 18, 1060
_BEND = "{x:.1f} {y:.1f} C{x:.1f} {middle:.1f} {to:.1f} {middle:.1f} {to:.1f} {end:.1f}"
_STYLE = """
  text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1b2030; text-anchor: middle; }
  rect { fill: #fff; stroke: #8a94a8; stroke-width: 1.3; } .device { fill: #dbe8ff; stroke: #2563eb; }
  path { fill: none; stroke: #8a94a8; stroke-width: 1.2; } marker path { fill: #8a94a8; stroke: none; }
  @media (prefers-color-scheme: dark) { text { fill: #e8ebf3; } rect { fill: #191e2a; stroke: #6b7690; }
    .device { fill: #1d3563; stroke: #7aa7ff; } path { stroke: #7f8aa3; } marker path { fill: #7f8aa3; } }
"""

Graph = Mapping[str, set[str]]


def boxes(table: str) -> dict[str, tuple[str, ...]]:
    """The modules of every row of the table, by the first of them."""
    rows = (re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()
            if line.startswith("| `"))  # fmt: skip
    return {row[0]: tuple(row) for row in rows}


def modules() -> dict[str, list[Path]]:
    """Files of every folder and every single module of the package."""
    found = {path.stem: [path] for path in sorted(PACKAGE.glob("*.py"))}
    for folder in sorted(PACKAGE.iterdir()):
        if (folder / "__init__.py").exists():
            found[folder.name] = sorted(folder.rglob("*.py"))
    del found["__init__"]
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(rows: Mapping[str, Sequence[str]]) -> tuple[dict[str, set[str]], set[str]]:
    """Which box imports which, and the boxes that compute on the device.

    Raises:
      ValueError: a module stands in no row, or a row names one that is not there.
    """
    files = modules()
    owner = {name: box for box, names in rows.items() for name in names}
    if wrong := set(files) ^ set(owner):
        raise ValueError(f"the table of architecture.md and the package differ in {sorted(wrong)}")
    edges: dict[str, set[str]] = {box: set() for box in rows}
    device = set()
    for name, box in owner.items():
        for imported in (name for path in files[name] for name in imports(path)):
            parts = imported.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1 and owner.get(parts[1], box) != box:
                edges[box].add(owner[parts[1]])
            if imported.startswith(("jax.numpy", "flax")):
                device.add(box)
    return edges, device


def reachable(edges: Graph, start: str) -> set[str]:
    """Everything that `start` imports directly or through others."""
    seen: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        if (box := waiting.pop()) not in seen:
            seen.add(box)
            waiting += edges[box]
    return seen


def reduced(edges: Graph) -> dict[str, set[str]]:
    """The arrows that follow from no others."""
    return {
        box: {
            to for to in below if not any(to in reachable(edges, other) for other in below - {to})
        }
        for box, below in edges.items()
    }


def levels(edges: Graph) -> list[list[str]]:
    """Boxes by level, the lowest last: each stands above everything it imports.

    Raises:
      ValueError: boxes that import each other.
    """
    heights: dict[str, int] = {}
    while len(heights) < len(edges):
        ready = [box for box in edges if box not in heights and edges[box] <= set(heights)]
        if not ready:
            raise ValueError(f"boxes import each other: {sorted(set(edges) - set(heights))}")
        for box in ready:
            heights[box] = 1 + max((heights[to] for to in edges[box]), default=-1)
    height = max(heights.values())
    return [[box for box in edges if heights[box] == level] for level in range(height, -1, -1)]


Place = tuple[float, float, float, list[str]]
"""Centre x, top y, width and lines."""


def places(
    rows: Mapping[str, Sequence[str]], edges: Graph
) -> tuple[dict[str, Place], dict[tuple[str, str], list[float]]]:
    """Of every box, and for every arrow where it passes the levels between its ends.

    Levels are ordered by the mean of their neighbours' places, again and again; a long arrow takes a narrow
    place of its own in every level that it passes.
    """
    order = levels(edges)
    level_of = {box: number for number, level in enumerate(order) for box in level}
    near: dict[str, list[str]] = {box: [] for box in edges}
    chains = {}
    for box in edges:
        for to in sorted(edges[box]):
            between = range(level_of[box] + 1, level_of[to])
            chains[box, to] = [f"{box}>{to}:{number}" for number in between]
            for number, name in zip(between, chains[box, to], strict=True):
                order[number].append(name)
            path = [box, *chains[box, to], to]
            for first, second in itertools.pairwise(path):
                near.setdefault(first, []).append(second)
                near.setdefault(second, []).append(first)
    lines = {box: _lines(names) for box, names in rows.items()}
    widths = dict.fromkeys(near, 4.0)
    widths |= {box: 18 + _LETTER * max(map(len, text)) for box, text in lines.items()}
    centre: dict[str, float] = {}
    for level in order:
        _spread(level, widths, centre)
    for sweep in range(24):
        for level in order if sweep % 2 else order[::-1]:
            wanted = {
                name: sum(centre[other] for other in near[name]) / max(1, len(near[name]))
                for name in level
            }
            level.sort(key=lambda name: (round(wanted[name], 3), name))
            _spread(level, widths, centre)
    boxes = {
        box: (centre[box], 14.0 + _ROW * level_of[box], widths[box], lines[box]) for box in edges
    }
    return boxes, {arrow: [centre[name] for name in chain] for arrow, chain in chains.items()}


def _lines(names: Sequence[str], most: int = 26) -> list[str]:
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + len(name) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} · {name}" if lines[-1] else name
    return lines


def _spread(level: Sequence[str], widths: Mapping[str, float], centre: dict[str, float]) -> None:
    free = _WIDTH - sum(widths[box] for box in level)
    gap = max(_GAP, free / (len(level) + 1))
    left = (free - gap * (len(level) - 1)) / 2
    for box in level:
        centre[box] = left + widths[box] / 2
        left += widths[box] + gap


def draw() -> str:
    """The drawing as SVG."""
    rows = boxes((HERE / "architecture.md").read_text(encoding="utf8"))
    edges, device = graph(rows)
    arrows = reduced(edges)
    at, passes = places(rows, arrows)
    shapes = []
    for (box, to), between in sorted(passes.items()):
        x, y = at[box][0], at[box][1] + 12 + _LINE * len(at[box][3])
        path = "M"
        for number, passed in enumerate(between, start=1):
            top = at[box][1] + _ROW * number
            path += _BEND.format(x=x, y=y, to=passed, end=top, middle=(y + top) / 2) + "L"
            x, y = passed, top + 12 + 2 * _LINE
        end = at[to][1] - 3
        path += _BEND.format(x=x, y=y, to=at[to][0], end=end, middle=(y + end) / 2)
        shapes.append(f'<path d="{path}" marker-end="url(#to)"/>')
    for box in sorted(at):
        x, y, width, text = at[box]
        kind = ' class="device"' if box in device else ""
        shapes.append(
            f'<rect{kind} x="{x - width / 2:.1f}" y="{y}" width="{width:.1f}" '
            f'height="{12 + _LINE * len(text)}" rx="6"/>'
        )
        shapes += [
            f'<text x="{x:.1f}" y="{y + 6 + _LINE * (number + 0.72):.1f}">{escape(line)}</text>'
            for number, line in enumerate(text)
        ]
    height = max(y + 24 + _LINE * len(text) for _, y, _, text in at.values())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="Rooms of the code; arrows point to what is imported">\n'
        f"<style>{_STYLE}</style>\n"
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    DRAWING.write_text(draw(), encoding="utf8")
    print(DRAWING)
