"""How each concept is drawn: one function per concept, given a brush, a generator and a colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfds_builders.shapes.brush import Brush, Colour

COLOURS: dict[str, Colour] = {
    "red": (205, 45, 45),
    "blue": (50, 85, 200),
    "green": (45, 150, 70),
    "yellow": (235, 200, 50),
    "purple": (130, 60, 170),
    "pink": (238, 125, 175),
    "white": (235, 235, 230),
    "black": (45, 45, 50),
}
_GLASS = (175, 210, 230)
_TYRE = (30, 30, 33)
_LEAF = (60, 140, 55)


def _vary(rng: np.random.Generator, colour: Colour, amount: float = 18) -> Colour:
    """The colour, a little different each time."""
    shift = rng.normal(0, amount, 3) * 0.5 + rng.normal(0, amount)
    return tuple(float(c) for c in np.clip(np.asarray(colour) + shift, 8, 250))


def _darker(colour: Colour, factor: float) -> Colour:
    return tuple(float(np.clip(c * factor, 0, 255)) for c in colour)


def _contrast(rng: np.random.Generator, colour: Colour) -> Colour:
    """White on dark colours, dark on light ones, or the other way round where both can be seen."""
    light = np.mean(colour) > rng.uniform(110, 150)
    return (45, 42, 50) if light else (240, 238, 230)


def striped_ball(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A ball with three or four parallel stripes."""
    brush.disc(0, 0, 0.95, colour)
    layer = brush.layer()
    ink, count = _contrast(rng, colour), int(rng.integers(3, 5))
    step = 1.9 / count
    for i in range(count):
        x = -0.95 + (i + 0.5) * step
        layer.box(x - step * 0.25, -1, x + step * 0.25, 1, ink)
    brush.paste(layer)
    brush.shade(0.45, -0.3, -0.35)


def dotted_ball(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A ball with dots on a hexagonal grid."""
    brush.disc(0, 0, 0.95, colour)
    layer = brush.layer()
    ink, step = _contrast(rng, colour), rng.uniform(0.5, 0.62)
    for row in range(-2, 3):
        for column in range(-2, 3):
            layer.disc((column + 0.5 * (row % 2)) * step, row * step * 0.87, step * 0.3, ink)
    brush.paste(layer)
    brush.shade(0.45, -0.3, -0.35)


def _cat(brush: Brush, fur: Colour, marks: Callable[[Brush], None]) -> None:
    """The outline that tiger and leopard share; `marks` draws the pattern of the fur."""
    brush.stroke(-0.62, -0.05, -0.95, -0.6, 0.15, fur)
    brush.disc(-0.94, -0.6, 0.09, _darker(fur, 0.45))
    for x in (-0.55, -0.25, 0.22, 0.48):
        brush.box(x - 0.1, 0.1, x + 0.1, 0.8, fur)
    brush.ellipse(0.0, 0.05, 0.72, 0.38, fur)
    brush.polygon([(0.42, -0.42), (0.44, -0.72), (0.62, -0.52)], fur)
    brush.polygon([(0.98, -0.42), (0.96, -0.72), (0.78, -0.52)], fur)
    brush.disc(0.7, -0.25, 0.34, fur)
    layer = brush.layer()
    marks(layer)
    brush.paste(layer)
    brush.ellipse(0.73, -0.1, 0.17, 0.12, (245, 235, 215))
    brush.disc(0.73, -0.15, 0.05, (60, 35, 35))
    for x in (0.58, 0.84):
        brush.disc(x, -0.3, 0.055, (25, 25, 20))


def _fur(rng: np.random.Generator) -> Colour:
    return _vary(rng, (226, 152, 66), 11)


def tiger(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A cat with dark upright stripes."""
    ink = (38, 28, 24)

    def marks(layer: Brush) -> None:
        for x in np.arange(-0.66, 0.5, rng.uniform(0.2, 0.25)):
            lean = rng.uniform(-0.06, 0.06)
            layer.stroke(x, -0.45, x + lean, rng.uniform(0.3, 0.75), 0.095, ink)
        for x in (0.52, 0.7, 0.88):
            layer.stroke(x, -0.62, 0.7 + (x - 0.7) * 0.6, -0.38, 0.06, ink)

    _cat(brush, _fur(rng), marks)


def leopard(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """The same cat with dark spots."""
    ink = (48, 32, 24)

    def marks(layer: Brush) -> None:
        step = rng.uniform(0.2, 0.24)
        for row, y in enumerate(np.arange(-0.3, 0.75, step * 0.9)):
            for x in np.arange(-0.7 + step / 2 * (row % 2), 0.5, step):
                jitter = rng.uniform(-0.03, 0.03, 2)
                layer.disc(x + jitter[0], y + jitter[1], step * 0.3, ink)
        for x, y in ((0.55, -0.5), (0.7, -0.5), (0.86, -0.48), (0.48, -0.3), (0.94, -0.28)):
            layer.disc(x, y, 0.05, ink)

    _cat(brush, _fur(rng), marks)


def wooden_crate(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A square of planks with a frame and a brace across."""
    wood = _vary(rng, (172, 122, 72), 13)
    brush.box(-0.85, -0.85, 0.85, 0.85, _darker(wood, 0.55))
    for i in range(4):
        y = -0.85 + i * 0.425
        brush.box(-0.85, y + 0.03, 0.85, y + 0.395, _vary(rng, wood, 5))
    brace = _darker(wood, 0.78)
    brush.stroke(-0.7, 0.7, 0.7, -0.7, 0.24, brace)
    if rng.random() < 0.5:
        brush.stroke(-0.7, -0.7, 0.7, 0.7, 0.24, brace)
    for x in (-0.76, 0.76):
        brush.box(x - 0.11, -0.87, x + 0.11, 0.87, _darker(wood, 1.12))
        brush.box(-0.87, x - 0.11, 0.87, x + 0.11, _darker(wood, 1.12))


def gift_box(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A square parcel, often in brown paper, with a ribbon cross and a bow."""
    paper = _vary(rng, (172, 122, 72), 13) if rng.random() < 0.3 else colour
    ribbon = _contrast(rng, paper)
    if rng.random() < 0.6:
        ribbon = _vary(rng, COLOURS["red" if paper[0] < 190 or paper[1] > 120 else "yellow"])
    brush.box(-0.8, -0.6, 0.8, 0.9, paper)
    brush.box(-0.86, -0.62, 0.86, -0.3, _darker(paper, 0.85))
    brush.box(-0.14, -0.62, 0.14, 0.9, ribbon)
    brush.box(-0.8, 0.1, 0.8, 0.34, ribbon)
    for side in (-1, 1):
        brush.ellipse(side * 0.3, -0.76, 0.3, 0.17, ribbon, turn=side * 0.35)
        brush.ellipse(side * 0.32, -0.76, 0.14, 0.07, _darker(ribbon, 0.6), turn=side * 0.35)
    brush.disc(0, -0.7, 0.12, _darker(ribbon, 0.85))


def _wheels(brush: Brush, places: tuple[float, ...], y: float, r: float) -> None:
    for x in places:
        brush.disc(x, y, r, _TYRE)
        brush.disc(x, y, r * 0.45, (170, 172, 176))


def car(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A saloon seen from the side."""
    roof = [(-0.6, -0.02), (-0.4, -0.45), (0.22, -0.45), (0.55, -0.02)]
    brush.polygon(roof, colour)
    body = [(-0.98, 0.4), (-0.98, 0.05), (-0.9, -0.06), (0.6, -0.06), (0.95, 0.08), (0.98, 0.4)]
    brush.polygon(body, colour)
    brush.polygon([(-0.48, -0.05), (-0.34, -0.37), (-0.12, -0.37), (-0.12, -0.05)], _GLASS)
    brush.polygon([(-0.04, -0.05), (-0.04, -0.37), (0.17, -0.37), (0.4, -0.05)], _GLASS)
    brush.box(-0.98, 0.3, 0.98, 0.4, _darker(colour, 0.6))
    brush.disc(0.9, 0.14, 0.08, (250, 240, 170))
    _wheels(brush, (-0.52, 0.52), 0.38, 0.24)


def truck(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A box lorry: grey or white box, coloured cab."""
    load = _vary(rng, (205, 205, 200) if rng.random() < 0.6 else (120, 125, 130), 8)
    brush.box(-0.98, -0.68, 0.4, 0.38, load)
    for x in (-0.63, -0.29, 0.06):
        brush.box(x - 0.02, -0.68, x + 0.02, 0.38, _darker(load, 0.75))
    brush.polygon([(0.44, 0.45), (0.44, -0.38), (0.76, -0.38), (0.97, 0.02), (0.97, 0.45)], colour)
    brush.polygon([(0.56, -0.02), (0.56, -0.28), (0.73, -0.28), (0.87, -0.02)], _GLASS)
    brush.box(-0.98, 0.36, 0.97, 0.46, (60, 60, 62))
    _wheels(brush, (-0.68, -0.3, 0.66), 0.48, 0.22)


def bus(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A long body with a row of windows."""
    corners = [(-0.98, 0.42), (-0.98, -0.52), (-0.9, -0.6), (0.9, -0.6), (0.98, -0.5), (0.98, 0.42)]
    brush.polygon(corners, colour)
    brush.box(-0.98, 0.12, 0.98, 0.22, _darker(colour, 0.6 if np.mean(colour) > 90 else 2.5))
    for i in range(5):
        x = -0.88 + i * 0.36
        brush.box(x, -0.42, x + 0.27, -0.04, _GLASS)
    _wheels(brush, (-0.56, 0.56), 0.42, 0.22)


def red_apple(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """Two lobes, a stem and a leaf."""
    skin = _vary(rng, (200, 38, 42), 12)
    brush.disc(-0.28, 0.1, 0.62, skin)
    brush.disc(0.28, 0.1, 0.62, skin)
    brush.ellipse(0, 0.42, 0.55, 0.5, skin)
    brush.shade(0.4, -0.4, -0.3)
    brush.ellipse(0, -0.4, 0.2, 0.07, _darker(skin, 0.6))
    brush.stroke(0, -0.4, 0.1, -0.9, 0.11, (95, 65, 40))
    brush.ellipse(0.38, -0.74, 0.3, 0.14, _LEAF, turn=-0.35)


def banana(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A crescent with dark ends."""
    skin = _vary(rng, (240, 208, 62), 10)
    turn = np.linspace(0.1, np.pi - 0.1, 14)
    outer = np.stack([0.95 * np.cos(turn), 0.95 * np.sin(turn) - 0.4], axis=1)
    inner = np.stack([0.78 * np.cos(turn[::-1]), 0.38 * np.sin(turn[::-1]) - 0.35], axis=1)
    brush.polygon(np.concatenate([outer, inner]), skin)
    middle = np.stack([0.86 * np.cos(turn), 0.66 * np.sin(turn) - 0.38], axis=1)
    lower = np.stack([0.87 * np.cos(turn[::-1]), 0.75 * np.sin(turn[::-1]) - 0.38], axis=1)
    brush.polygon(np.concatenate([middle, lower]), _darker(skin, 0.8))
    brush.stroke(0.84, -0.28, 0.86, -0.52, 0.16, (95, 75, 40))
    brush.disc(-0.86, -0.32, 0.1, (95, 75, 40))


def bunch_of_grapes(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """Rows of round berries under a leaf."""
    skin = _vary(rng, (108, 52, 140), 12)
    brush.stroke(0, -0.5, 0.06, -0.95, 0.1, (95, 75, 45))
    brush.ellipse(0.34, -0.72, 0.32, 0.19, _LEAF, turn=-0.3)
    for row, count in enumerate((3, 4, 3, 2, 1)):
        for i in range(count):
            x, y = (i - (count - 1) / 2) * 0.42, -0.42 + row * 0.33
            brush.disc(x, y, 0.27, _darker(skin, 0.72))
            brush.disc(x - 0.02, y - 0.02, 0.23, _vary(rng, skin, 6))
            brush.disc(x - 0.08, y - 0.09, 0.06, (210, 190, 225))


def _petals(brush: Brush, count: int, length: float, width: float, colour: Colour) -> None:
    for i in range(count):
        turn = 2 * np.pi * i / count
        x, y = np.cos(turn) * (0.95 - length), np.sin(turn) * (0.95 - length)
        shade = 1.0 if i % 2 else 0.86
        brush.ellipse(x, y, length, width, _darker(colour, shade), turn=turn)


def daisy(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """White petals around a small yellow centre."""
    _petals(brush, int(rng.integers(9, 12)), 0.4, 0.2, _vary(rng, (242, 242, 238), 5))
    brush.disc(0, 0, 0.3, _vary(rng, (238, 190, 40), 8))
    brush.disc(0.04, 0.05, 0.2, (222, 165, 30))


def sunflower(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """Yellow petals around a large brown centre."""
    _petals(brush, int(rng.integers(13, 17)), 0.36, 0.15, _vary(rng, (245, 195, 35), 8))
    brush.disc(0, 0, 0.54, _vary(rng, (92, 58, 32), 8))
    for radius, count in ((0.2, 6), (0.4, 12)):
        for turn in np.arange(count) * 2 * np.pi / count:
            brush.disc(radius * np.cos(turn), radius * np.sin(turn), 0.05, (58, 36, 22))


def tulip(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    """A cup of three petals on a stem with two leaves."""
    petal = _vary(rng, [(225, 70, 120), (200, 45, 60), (240, 130, 160)][rng.integers(3)], 8)
    brush.stroke(0, 0.0, 0, 0.97, 0.13, _LEAF)
    for side in (-1, 1):
        brush.ellipse(side * 0.26, 0.6, 0.42, 0.13, _darker(_LEAF, 0.9), turn=-side * 1.0)
    cup = [(-0.62, -0.85), (-0.3, -0.5), (0, -0.95), (0.3, -0.5), (0.62, -0.85)]
    curve = [(0.64, -0.3), (0.45, 0.05), (0.2, 0.2), (-0.2, 0.2), (-0.45, 0.05), (-0.64, -0.3)]
    brush.polygon(cup + curve, petal)
    centre = [(0, -0.95), (0.3, -0.5), (0.26, -0.05), (0, 0.2), (-0.26, -0.05), (-0.3, -0.5)]
    brush.polygon(centre, _darker(petal, 0.78))


DRAW: dict[str, Callable[[Brush, np.random.Generator, Colour], None]] = {
    "striped ball": striped_ball,
    "dotted ball": dotted_ball,
    "tiger": tiger,
    "leopard": leopard,
    "wooden crate": wooden_crate,
    "gift box": gift_box,
    "car": car,
    "truck": truck,
    "bus": bus,
    "red apple": red_apple,
    "banana": banana,
    "bunch of grapes": bunch_of_grapes,
    "daisy": daisy,
    "tulip": tulip,
    "sunflower": sunflower,
}
