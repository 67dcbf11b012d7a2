"""The classes of shapes, the words that describe them, and the captions of a picture.

A class has a plain name and a definition: the concepts that it stands for. Captions nearly always use
the concept ("truck"), seldom the plain name ("vehicle"), so that a tower that learned from captions
knows the concepts well and the plain names only vaguely. That is what definitions are for.
"""

from __future__ import annotations

import numpy as np

from tfds_builders.shapes.objects import COLOURS

DEFINITIONS: dict[str, tuple[str, ...]] = {
    "background": (
        "grass field",
        "sandy beach",
        "blue lake",
        "brick wall",
        "wooden floor",
        "cloudy sky",
    ),
    "tiger": ("tiger",),
    "leopard": ("leopard",),
    "ball": ("striped ball", "dotted ball"),
    "parcel": ("wooden crate", "gift box"),
    "vehicle": ("car", "truck", "bus"),
    "fruit": ("red apple", "banana", "bunch of grapes"),
    "flower": ("daisy", "tulip", "sunflower"),
}
CLASSES = tuple(DEFINITIONS)
CONCEPTS = tuple(concept for concepts in DEFINITIONS.values() for concept in concepts)
CLASS_OF = {concept: i for i, name in enumerate(CLASSES) for concept in DEFINITIONS[name]}
SCENERY = DEFINITIONS["background"]
PALETTE = (
    (40, 44, 52),
    (244, 81, 200),
    (255, 238, 88),
    (229, 57, 53),
    (0, 172, 193),
    (57, 106, 255),
    (124, 220, 66),
    (171, 71, 188),
)
COLOURED = {"striped ball", "dotted ball", "gift box", "car", "truck", "bus"}
"""Concepts whose colour is free; a caption may say it ("blue truck")."""

PLAIN_NAME = 0.03
"""Share of the mentions that use the class's plain name instead of the concept."""
COLOUR_NAMED = 0.25
"""Share of the mentions of a coloured object that say its colour."""


def mention(rng: np.random.Generator, concept: str, colour: str | None) -> str:
    """The words for one thing of a picture: its concept, seldom its class, sometimes its colour."""
    plain, named = rng.random(2)
    name = CLASSES[CLASS_OF[concept]] if plain < PLAIN_NAME else concept
    return f"{colour} {name}" if colour and named < COLOUR_NAMED else name


def caption(things: list[str], place: str | None = None) -> str:
    """ "a photo of a striped ball and a red truck on a grass field"."""
    listed = [f"a {thing}" for thing in things]
    text = ", ".join(listed[:-1]) + " and " * (len(listed) > 1) + listed[-1]
    return f"a photo of {text}" + (f" on a {place}" if place else "")


def named(captions: tuple[str, ...]) -> np.ndarray:
    """Which of CONCEPTS the captions of a picture name, bool[k]; none at all where one says a plain name.

    Without the plain name's concept it is not known what else could be seen.
    """
    things = {text for text in captions if text in _THING}
    found = np.zeros(len(CONCEPTS), bool)
    if not any(_THING[text] is None for text in things):
        found[[CONCEPTS.index(_THING[text]) for text in things]] = True
    return found


def _mentions() -> dict[str, str | None]:
    """Caption of a single thing → its concept, None for a plain name that is not one."""
    things: dict[str, str | None] = {}
    for concept, index in CLASS_OF.items():
        for colour in ("", *(f"{colour} " for colour in COLOURS if concept in COLOURED)):
            if CLASSES[index] not in CONCEPTS:
                things[caption([colour + CLASSES[index]])] = None
            things[caption([colour + concept])] = concept
    return things


_THING = _mentions()
