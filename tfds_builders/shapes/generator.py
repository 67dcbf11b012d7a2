"""Draws shapes: pictures with several objects, their label maps and captions.

    sample(part, index, seed=0)           a scene of one of the two labelled parts
    pretrain_sample(index, size, seed=0)  a square picture with captions for contrastive pretraining

Images are uint8 RGB, labels uint8 class indices with 255 on a line of one pixel between regions. Every
picture is a function of (seed, part, index) alone; the random streams of the parts are different
children of the seed, so no picture of one part is ever drawn in another. Needs NumPy and OpenCV only.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tfds_builders.shapes import words
from tfds_builders.shapes.brush import Brush
from tfds_builders.shapes.objects import COLOURS, DRAW
from tfds_builders.shapes.textures import FAR, NEAR, TEXTURE

PARTS = {"train": 3000, "validation": 300}
"""Pictures of each labelled part."""
SIDE = 64
"""Rows and columns of a scene."""
VOID = 255
_STREAM = {"train": 1, "validation": 2, "pretrain": 3}
_CLASS_GROUPS = tuple(words.DEFINITIONS[name] for name in words.CLASSES[1:])
_LEAST_VISIBLE = 0.4
_SEEN = 40
"""Pixels from which on a caption names a thing."""


@dataclass(frozen=True)
class Sample:
    """One picture: image uint8[h,w,3] RGB, label uint8[h,w], captions (the first names everything)."""

    image: np.ndarray
    label: np.ndarray
    captions: tuple[str, ...]


@dataclass
class _Canvas:
    """A picture in the making; `owner` int16[h,w] counts from 1 for objects, 0 is scenery.

    Rows from `horizon` on are the last scenery, those above the first.
    """

    image: np.ndarray
    owner: np.ndarray
    scenery: list[str]
    horizon: int
    concepts: list[str]
    colours: list[str | None]


def generator(part: str, index: int, *, seed: int) -> np.random.Generator:
    """The random stream of one picture."""
    if part not in _STREAM:
        raise ValueError(f"part is {part!r}; shapes has the parts {', '.join(_STREAM)}")
    return np.random.Generator(np.random.PCG64([seed, _STREAM[part], index]))


def sample(part: str, index: int, *, seed: int = 0) -> Sample:
    """Scene `index` of "train" or "validation"."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; labelled scenes are in {', '.join(PARTS)}")
    rng = generator(part, index, seed=seed)
    canvas = _scenery(rng, SIDE, SIDE)
    for _ in range(int(rng.integers(2, 5))):
        _place(canvas, rng, diameter=rng.uniform(30, 60))
    return Sample(_photograph(canvas, rng), _label(canvas), _captions(canvas, rng))


def pretrain_sample(index: int, *, size: int, seed: int = 0) -> tuple[np.ndarray, tuple[str, ...]]:
    """Picture `index` of the pretraining part: image uint8[size,size,3] and its captions.

    Objects are as large as in the scenes, so a small picture is a close look at one of them or at the
    scenery, and a large one (64 pixels and more) mostly a scene. Captions name what can be seen; no
    label map is ever drawn.
    """
    rng = generator("pretrain", index, seed=seed)
    canvas = _scenery(rng, size, size)
    kind = rng.random()
    if size >= 64 and kind < 0.85:
        for _ in range(int(rng.integers(1, 5))):
            _place(canvas, rng, diameter=rng.uniform(30, 60))
    elif kind < 0.88:
        for _ in range(2 if kind < 0.15 else 1):
            _place(canvas, rng, diameter=rng.uniform(30, 64), spread=0.4)
    return _photograph(canvas, rng), _captions(canvas, rng)


def _scenery(rng: np.random.Generator, h: int, w: int) -> _Canvas:
    """One texture, or two that meet at a horizon."""
    if rng.random() < 0.65:
        names, line = [words.SCENERY[rng.integers(len(words.SCENERY))]], 0
        image = TEXTURE[names[0]](rng, h, w)
    else:
        far = FAR[rng.integers(len(FAR))]
        below = [name for name in NEAR if name != far]
        near = below[rng.integers(len(below))]
        names, line = [far, near], int(h * rng.uniform(0.3, 0.6))
        image = np.concatenate([TEXTURE[far](rng, line, w), TEXTURE[near](rng, h - line, w)])
    owner = np.zeros((h, w), np.int16)
    return _Canvas(image.astype(np.float32), owner, names, line, [], [])


def _place(
    canvas: _Canvas, rng: np.random.Generator, *, diameter: float, spread: float = 1.0
) -> None:
    """Draw one more object in front of the others, where it leaves enough of each of them to see.

    Classes are equally likely, then concepts within the class. After four places that hide another
    object too much the object is left out.
    """
    group = _CLASS_GROUPS[rng.integers(len(_CLASS_GROUPS))]
    concept = group[rng.integers(len(group))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    layer = _draw(concept, colour, rng, diameter)
    h, w = canvas.owner.shape
    number = len(canvas.concepts) + 1
    for _ in range(4):
        x, y = (0.5 + spread * rng.uniform(-0.42, 0.42, 2)) * (w, h) - layer.shape[0] / 2
        window, part = _overlap(canvas.owner.shape, layer, int(x), int(y))
        owner = canvas.owner[window].copy()
        owner[part[..., 3] > 127] = number
        if np.count_nonzero(owner == number) < 60:  # cut off by the frame
            continue
        after = canvas.owner.copy()
        after[window] = owner
        if not _hides(canvas.owner, after, number):
            _shadow(canvas.image, layer, int(x), int(y))
            alpha = part[..., 3:].astype(np.float32) / 255
            canvas.image[window] = canvas.image[window] * (1 - alpha) + part[..., :3]
            canvas.owner = after
            canvas.concepts.append(concept)
            canvas.colours.append(colour if concept in words.COLOURED else None)
            return


def _draw(concept: str, colour: str, rng: np.random.Generator, diameter: float) -> np.ndarray:
    """The object on a transparent canvas, uint8[s,s,4], colours multiplied by opacity."""
    turn, stretch = rng.normal(0, 0.3), rng.uniform(0.88, 1.12)
    flip = -1 if rng.random() < 0.5 else 1
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotate @ np.diag([flip * stretch, 1 / stretch]) * (diameter / 2)
    brush = Brush(matrix, int(diameter * 1.5) + 4)
    shift = rng.normal(0, 12, 3)
    paint = tuple(float(c) for c in np.clip(np.asarray(COLOURS[colour]) + shift, 10, 245))
    DRAW[concept](brush, rng, paint)
    angle = rng.uniform(0, 2 * np.pi)
    brush.shade(rng.uniform(0, 0.3), 0.8 * np.cos(angle), 0.8 * np.sin(angle))
    return brush.canvas


def _overlap(
    shape: tuple[int, int], layer: np.ndarray, x: int, y: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a layer with its corner at (x, y) meets the picture, and the part of it that does."""
    side = layer.shape[0]
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + side, shape[0]), top), max(min(x + side, shape[1]), left)
    return (slice(top, bottom), slice(left, right)), layer[
        top - y : bottom - y, left - x : right - x
    ]


def _hides(before: np.ndarray, after: np.ndarray, number: int) -> bool:
    """Whether the newest object leaves less than the least visible share of an earlier one."""
    had = np.bincount(before.ravel(), minlength=number)[1:number]
    has = np.bincount(after.ravel(), minlength=number)[1:number]
    return bool(np.any(has < _LEAST_VISIBLE * had) or np.any(has < _SEEN))


def _shadow(image: np.ndarray, layer: np.ndarray, x: int, y: int) -> None:
    """Darken the picture below and beside an object, softly."""
    side = layer.shape[0]
    soft = cv2.blur(layer[..., 3], (7, 7))[..., None]
    window, part = _overlap(image.shape[:2], soft, x + side // 22, y + side // 16)
    image[window] *= 1 - 0.35 * (part.astype(np.float32) / 255)


def _photograph(canvas: _Canvas, rng: np.random.Generator) -> np.ndarray:
    """Light from one side, a tint, sensor noise and sometimes a soft focus."""
    h, w = canvas.owner.shape
    turn, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.28)
    ys, xs = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None, :]
    light = rng.uniform(0.82, 1.12) + strength * (np.cos(turn) * xs + np.sin(turn) * ys)
    tint = rng.normal(1, 0.035, 3)
    image = canvas.image * light[..., None].astype(np.float32) * tint.astype(np.float32)
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 0.8))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1.5, 7))
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _label(canvas: _Canvas) -> np.ndarray:
    """Classes of the pixels; void where a pixel differs in owner from its right or lower one."""
    classes = np.array([0] + [words.CLASS_OF[c] for c in canvas.concepts], np.uint8)
    label, owner = classes[canvas.owner], canvas.owner
    label[:, :-1][owner[:, :-1] != owner[:, 1:]] = VOID
    label[:-1][owner[:-1] != owner[1:]] = VOID
    return label


def _captions(canvas: _Canvas, rng: np.random.Generator) -> tuple[str, ...]:
    """One caption that names everything, then one for each object and each scenery that can be seen."""
    owner, line = canvas.owner, canvas.horizon
    seen = np.bincount(owner.ravel(), minlength=len(canvas.concepts) + 1) >= _SEEN
    objects = [
        words.mention(rng, concept, colour)
        for concept, colour, is_seen in zip(canvas.concepts, canvas.colours, seen[1:], strict=True)
        if is_seen
    ]
    bare = [
        np.count_nonzero(part == 0) for part in ((owner[:line], owner[line:]) if line else (owner,))
    ]
    places = [
        words.mention(rng, place, None)
        for place, pixels in zip(canvas.scenery, bare, strict=True)
        if pixels >= _SEEN
    ]
    whole = words.caption(objects or places, places[-1] if objects and places else None)
    single = [words.caption([thing]) for thing in objects + places]
    return tuple(dict.fromkeys([whole, *single]))
