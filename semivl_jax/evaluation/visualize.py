"""Label maps in colour, overlays, and panels with titles and a legend. Host, Pillow.

In: uint8 RGB images [h, w, 3], uint8 label maps [h, w] (255 = ignored), a uint8 palette [n, 3] of class
colours. Out: uint8 RGB images. Ignored pixels are white with grey diagonal lines, so that they cannot be
taken for a white class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from semivl_jax.types import IGNORE_INDEX

Rgb = UInt8[np.ndarray, "_ _ 3"]
Entry = tuple[str, tuple[int, ...] | None]
"""Name and colour of a legend entry; the colour None stands for ignored pixels."""

VOID = ((255, 255, 255), (205, 207, 212))
"""Background and lines of ignored pixels."""
TINT = 0.55
"""Share of the class's colour in an overlay."""
BACKGROUND, TEXT, LINES = (255, 255, 255), (32, 34, 40), (222, 224, 229)

SMALLEST, LARGEST = 240, 480
"""Longer side of a picture in a panel: smaller ones are magnified, larger ones reduced."""
MARGIN, GAP, TITLE, ROW, SWATCH = 20, 14, 28, 26, 14
"""Pixels: border, space between pictures, height of titles and of legend rows, side of a colour swatch."""
ALL_CLASSES = 24
"""Up to so many classes a legend names all; of more classes, those that occur."""


def colorize(
    label: Integer[np.ndarray, "h w"], palette: UInt8[np.ndarray, "n 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """A label map in the colours of its classes.

    Raises:
        ValueError: a value that is neither a class nor 255.
    """
    void = label == IGNORE_INDEX
    wrong = label[~void & ((label < 0) | (label >= len(palette)))]
    if wrong.size:
        raise ValueError(
            f"label value {int(wrong[0])} has no colour: the palette has {len(palette)} entries"
        )
    picture = palette[np.where(void, 0, label)]
    picture[void] = np.asarray(VOID, np.uint8)[_hatching(label.shape)[void].astype(int)]
    return picture


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    label: Integer[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "n 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """The image tinted with its classes, their borders drawn in full colour; ignored pixels stay."""
    share = np.where(_borders(label), 1.0, TINT)
    share = np.where(label == IGNORE_INDEX, 0.0, share)[..., None]
    mixed = share * colorize(label, palette) + (1 - share) * image
    return np.round(mixed).astype(np.uint8)


def panels(
    rows: Sequence[tuple[Rgb, Mapping[str, Integer[np.ndarray, "_ _"]]]],
    *,
    classes: Sequence[str],
    palette: UInt8[np.ndarray, "n 3"],
    largest: int = LARGEST,
) -> Rgb:
    """Rows of an image and label maps of it (by title), each row of one height, above one legend.

    Titles are those of the first row. Pictures of up to a few hundred pixels are magnified pixel by pixel;
    those whose longer side exceeds `largest` are reduced to it. With more than `ALL_CLASSES` classes the
    legend has those that occur in a label map.

    Raises:
        ValueError: other than one colour per class, or a label value without colour.
    """
    if len(classes) != len(palette):
        raise ValueError(f"{len(palette)} colours for {len(classes)} classes: give one per class")
    pictures = [
        _same_height(
            [Image.fromarray(p) for p in (image, *(colorize(m, palette) for m in maps.values()))],
            largest=largest,
        )
        for image, maps in rows
    ]
    width = max(sum(p.width for p in row) + GAP * (len(row) - 1) for row in pictures)
    height = sum(row[0].height for row in pictures) + GAP * (len(rows) - 1)
    top = MARGIN + TITLE
    size = (max(width, LARGEST) + 2 * MARGIN, top + height + 1)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(pictures):
        left, bottom = MARGIN, top + row[0].height
        for title, picture in zip(("image", *rows[number][1]), row, strict=True):
            if number == 0:
                draw.text((left, top - 9), title, fill=TEXT, font=_font(17), anchor="ls")
            sheet.paste(picture, (left, top))
            # A thin frame: a white label map would have no edge on white.
            draw.rectangle((left - 1, top - 1, left + picture.width, bottom), outline=LINES)
            left += picture.width + GAP
        top = bottom + GAP
    maps = [label for _, labels in rows for label in labels.values()]
    return _above_legend(
        sheet, _entries(maps, classes, palette, all_of=len(classes) <= ALL_CLASSES)
    )


def captioned(
    picture: UInt8[np.ndarray, "h w 3"],
    label: Integer[np.ndarray, "h w"],
    *,
    classes: Sequence[str],
    palette: UInt8[np.ndarray, "n 3"],
) -> Rgb:
    """A picture above a legend of the classes that occur in its label map.

    Small pictures are magnified pixel by pixel.
    """
    factor = -(-SMALLEST // max(picture.shape[:2]))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    entries = _entries([label], classes, palette, all_of=False)
    shown = [entry for entry in entries if entry[1] is not None]
    return _above_legend(Image.fromarray(picture), shown)


def _hatching(shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Diagonal lines, coarser on larger maps so that they survive reduction."""
    period = max(4, max(shape) // 40)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    return (rows + cols) % period < max(1, period // 4)


def _borders(label: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right or lower neighbour is of another class; wider on large maps."""
    edge = np.zeros(label.shape, bool)
    edge[:, :-1] |= label[:, :-1] != label[:, 1:]
    edge[:-1] |= label[:-1] != label[1:]
    for _ in range(max(label.shape) // 500):
        edge[1:] |= edge[:-1]
        edge[:, 1:] |= edge[:, :-1]
    return edge


def _same_height(pictures: Sequence[Image.Image], *, largest: int) -> list[Image.Image]:
    """The first picture at a readable size, and the others as high as it."""
    longer = max(pictures[0].size)
    factor = -(-SMALLEST // longer) if longer < SMALLEST else min(1.0, largest / longer)
    width, height = (max(1, round(length * factor)) for length in pictures[0].size)
    sized = []
    for picture in pictures:
        own = max(1, round(picture.width * height / picture.height))
        if abs(own - width) <= 0.05 * width:
            own = width  # the same shape but for rounding: columns then line up
        magnified = own >= 1.5 * picture.width
        method = Image.Resampling.NEAREST if magnified else Image.Resampling.LANCZOS
        sized.append(picture.resize((own, height), method))
    return sized


def _entries(
    labels: Iterable[np.ndarray],
    classes: Sequence[str],
    palette: np.ndarray,
    *,
    all_of: bool,
) -> list[Entry]:
    """Legend of the classes that occur in label maps, or of all; and of ignored pixels if there are any."""
    found = {int(value) for label in labels for value in np.unique(label)}
    colours = [tuple(int(v) for v in colour) for colour in palette]
    entries: list[Entry] = [
        (name, colour)
        for index, (name, colour) in enumerate(zip(classes, colours, strict=True))
        if all_of or index in found
    ]
    return [*entries, ("ignored", None)] if IGNORE_INDEX in found else entries


def _above_legend(picture: Image.Image, entries: Sequence[Entry]) -> Rgb:
    """A picture with a legend below: columns as wide as the longest name."""
    width = max(picture.width, SMALLEST)
    names = (_font(15).getlength(name) for name, _ in entries)
    column = SWATCH + 30 + round(max(names, default=0))
    per_row = max(1, (width - 2 * MARGIN) // column)
    rows = -(-len(entries) // per_row)
    top = picture.height + GAP
    sheet = Image.new("RGB", (width, top + ROW * rows + GAP), BACKGROUND)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, (name, colour) in enumerate(entries):
        x = MARGIN + number % per_row * column
        y = top + number // per_row * ROW + (ROW - SWATCH) // 2
        draw.rectangle((x - 1, y - 1, x + SWATCH, y + SWATCH), outline=LINES)
        sheet.paste(_swatch(colour), (x, y))
        draw.text((x + SWATCH + 8, y + SWATCH // 2), name, fill=TEXT, font=_font(15), anchor="lm")
    return np.asarray(sheet)


def _swatch(colour: tuple[int, ...] | None) -> Image.Image:
    label = np.full((SWATCH, SWATCH), IGNORE_INDEX if colour is None else 0)
    return Image.fromarray(colorize(label, np.asarray([colour or (0, 0, 0)], np.uint8)))


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
