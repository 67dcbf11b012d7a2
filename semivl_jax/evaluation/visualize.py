"""Label maps in colour, overlays, and rows of pictures with titles and a legend. Host, Pillow.

In: uint8 RGB images [h, w, 3], uint8 label maps [h, w] (255 = ignored), a uint8 palette [n, 3] of class
colours. Out: uint8 RGB images. Ignored pixels are white with grey diagonal lines, so that they cannot be
taken for a white class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from semivl_jax.types import IGNORE_INDEX

Rgb = UInt8[np.ndarray, "_ _ 3"]

VOID = ((255, 255, 255), (205, 207, 212))
"""Ground and lines of ignored pixels."""
PAPER, INK, FAINT = (255, 255, 255), (32, 34, 40), (222, 224, 229)

SMALLEST, LARGEST = 240, 480
"""Longer side of a picture in a panel: smaller ones are magnified, larger ones reduced."""
MARGIN, GAP, TITLE, LINE, SWATCH = 20, 14, 28, 26, 14
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
    *,
    alpha: float = 0.55,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image tinted with its classes, their borders drawn in full colour; ignored pixels stay."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: choose 0 (image only) to 1 (colours only)")
    share = np.where(_borders(label), 1.0, alpha)
    share = np.where(label == IGNORE_INDEX, 0.0, share)[..., None]
    mixed = share * colorize(label, palette) + (1 - share) * image
    return np.round(mixed).astype(np.uint8)


def panel(
    columns: Sequence[tuple[str, Rgb]],
    *,
    classes: Sequence[str],
    palette: UInt8[np.ndarray, "n 3"],
) -> Rgb:
    """Titled pictures side by side, of one height, above a legend of the classes.

    Pictures of up to a few hundred pixels are magnified pixel by pixel, large ones reduced. With more than
    24 classes the legend has those whose colour is in one of the label maps among the columns.

    Raises:
        ValueError: no column, or other than one colour per class.
    """
    if not columns:
        raise ValueError("a panel needs at least one column")
    if len(classes) != len(palette):
        raise ValueError(f"{len(palette)} colours for {len(classes)} classes: give one per class")
    pictures = _same_height([Image.fromarray(picture) for _, picture in columns])
    width = 2 * MARGIN + sum(p.width for p in pictures) + GAP * (len(pictures) - 1)
    width = max(width, 2 * MARGIN + LARGEST)
    entries = _legend_entries([picture for _, picture in columns], classes, palette)
    lines = _wrap(entries, width - 2 * MARGIN)
    top = MARGIN + TITLE
    bottom = top + pictures[0].height
    height = bottom + (GAP + LINE * len(lines) if lines else 0) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    left = MARGIN
    for (title, _), picture in zip(columns, pictures, strict=True):
        draw.text((left, top - 9), title, fill=INK, font=_font(17), anchor="ls")
        sheet.paste(picture, (left, top))
        # A hairline, or a white label map would have no edge on white paper.
        box = (left - 1, top - 1, left + picture.width, bottom)
        draw.rectangle(box, outline=FAINT)
        left += picture.width + GAP
    _draw_legend(sheet, lines, top=bottom + GAP)
    return np.asarray(sheet)


def captioned(
    picture: UInt8[np.ndarray, "h w 3"],
    label: Integer[np.ndarray, "h w"],
    *,
    classes: Sequence[str],
    palette: UInt8[np.ndarray, "n 3"],
) -> Rgb:
    """A picture above a legend of the classes that occur in its label map.

    Small pictures are magnified pixel by pixel, so that there is something to see.
    """
    longer = max(picture.shape[:2])
    if longer < SMALLEST:
        factor = -(-SMALLEST // longer)
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    there = [int(index) for index in np.unique(label) if index != IGNORE_INDEX]
    entries = [(classes[index], tuple(int(v) for v in palette[index])) for index in there]
    height, width = picture.shape[:2]
    width = max(width, SMALLEST)
    lines = _wrap(entries, width - 2 * MARGIN)
    sheet = Image.new("RGB", (width, height + GAP + LINE * len(lines) + GAP), PAPER)
    sheet.paste(Image.fromarray(picture), (0, 0))
    _draw_legend(sheet, lines, top=height + GAP)
    return np.asarray(sheet)


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


def _same_height(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The first picture at a readable size, and the others as high as it."""
    width, height = pictures[0].size
    longer = max(width, height)
    factor = -(-SMALLEST // longer) if longer < SMALLEST else min(1.0, LARGEST / longer)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return [_resized(picture, size) for picture in pictures]


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    width = max(1, round(picture.width * size[1] / picture.height))
    if abs(width - size[0]) <= 0.05 * size[0]:
        width = size[0]  # the same shape but for rounding: columns then line up
    magnified = width >= 1.5 * picture.width
    how = Image.Resampling.NEAREST if magnified else Image.Resampling.LANCZOS
    return picture.resize((width, size[1]), how)


def _legend_entries(
    pictures: Sequence[np.ndarray], classes: Sequence[str], palette: np.ndarray
) -> list[tuple[str, tuple[int, int, int] | None]]:
    """(name, colour) of what the legend shows; the colour None stands for ignored pixels."""
    known = _codes(np.concatenate([palette, np.asarray(VOID, np.uint8)]))
    seen = [np.unique(_codes(picture)) for picture in pictures]
    # A picture with other colours than classes have is a photo, and says nothing about classes.
    seen = [codes for codes in seen if np.isin(codes, known).all()]
    there = np.concatenate(seen) if seen else np.zeros(0, int)
    colours = [tuple(int(v) for v in colour) for colour in palette]
    codes = _codes(palette)
    entries = [
        (name, colour)
        for name, colour, code in zip(classes, colours, codes, strict=True)
        if len(classes) <= ALL_CLASSES or code in there
    ]
    if np.isin(_codes(np.asarray(VOID[1:], np.uint8)), there).any():
        entries.append(("ignored", None))
    return entries


def _codes(colours: UInt8[np.ndarray, "*b 3"]) -> np.ndarray:
    """One integer per colour."""
    return colours.astype(int) @ np.array([1 << 16, 1 << 8, 1])


def _wrap(entries: Sequence, width: int) -> list[list[tuple[str, tuple | None, int]]]:
    """Legend lines of (name, colour, left edge): a grid whose columns are as wide as the longest name."""
    if not entries:
        return []
    cell = max(SWATCH + 8 + round(_font(15).getlength(name)) + 22 for name, _ in entries)
    per_line = max(1, width // cell)
    return [
        [
            (name, colour, MARGIN + i * cell)
            for i, (name, colour) in enumerate(entries[start : start + per_line])
        ]
        for start in range(0, len(entries), per_line)
    ]


def _draw_legend(sheet: Image.Image, lines: Sequence, *, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    mask = _rounded()
    for row, line in enumerate(lines):
        y = top + row * LINE + (LINE - SWATCH) // 2
        for name, colour, left in line:
            sheet.paste(FAINT, (left - 1, y - 1), _rounded(SWATCH + 2))
            sheet.paste(_swatch(colour), (left, y), mask)
            draw.text(
                (left + SWATCH + 8, y + SWATCH // 2), name, fill=INK, font=_font(15), anchor="lm"
            )


def _swatch(colour: tuple[int, int, int] | None) -> Image.Image:
    if colour is not None:
        return Image.new("RGB", (SWATCH, SWATCH), colour)
    return Image.fromarray(
        colorize(np.full((SWATCH, SWATCH), IGNORE_INDEX), np.zeros((1, 3), np.uint8))
    )


def _rounded(side: int = SWATCH) -> Image.Image:
    """Mask of a square with smooth round corners (Pillow's own are jagged)."""
    large = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(large).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), radius=14, fill=255)
    return large.resize((side, side), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
