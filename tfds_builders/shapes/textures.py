"""The scenery behind the objects: one function per texture, float32[h,w,3] RGB in [0, 255]."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np


def _noise(rng: np.random.Generator, h: int, w: int, cell_h: float, cell_w: float) -> np.ndarray:
    """Smooth noise in about [-1, 1] whose blobs are cell_h by cell_w pixels."""
    coarse = rng.uniform(-1, 1, (int(h / cell_h) + 3, int(w / cell_w) + 3)).astype(np.float32)
    fine = cv2.resize(coarse, None, fx=cell_w, fy=cell_h, interpolation=cv2.INTER_CUBIC)
    return fine[:h, :w]


def _paint(base: tuple[float, float, float], amount: np.ndarray, tint: tuple) -> np.ndarray:
    """base + amount x tint per pixel."""
    return np.asarray(base, np.float32) + amount[..., None] * np.asarray(tint, np.float32)


def grass_field(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Green with darker patches and upright blades."""
    patches, blades = _noise(rng, h, w, 22, 22), _noise(rng, h, w, 6, 1.5)
    shade = 0.5 * patches + 0.75 * blades + 0.3 * _noise(rng, h, w, 2, 2)
    green = (rng.uniform(72, 98), rng.uniform(125, 152), rng.uniform(45, 62))
    return _paint(green, shade, (34, 38, 20))


def sandy_beach(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Pale grains over flat ripples."""
    rows = np.arange(h, dtype=np.float32)[:, None]
    warp = 5 * _noise(rng, h, w, 30, 30)
    ripples = np.sin((rows + warp) * (2 * np.pi / rng.uniform(9, 14)))
    grains = rng.standard_normal((h, w), dtype=np.float32)
    tan = (rng.uniform(208, 226), rng.uniform(182, 198), rng.uniform(132, 150))
    return _paint(tan, 0.7 * ripples + 0.65 * grains, (13, 13, 12))


def blue_lake(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Blue-green with flat waves and glints."""
    waves = 0.7 * _noise(rng, h, w, 3.5, 16) + 0.5 * _noise(rng, h, w, 12, 40)
    glints = np.maximum(_noise(rng, h, w, 2, 9) - 0.45, 0) * 1.7
    blue = (rng.uniform(28, 48), rng.uniform(98, 122), rng.uniform(140, 168))
    return _paint(_paint(blue, waves, (18, 32, 34)), glints, (150, 150, 140))


def brick_wall(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Rows of bricks, every second row shifted, with light mortar."""
    tall, wide = int(rng.integers(7, 11)), int(rng.integers(16, 24))
    y, x = np.arange(h)[:, None] + int(rng.integers(tall)), np.arange(w)[None, :]
    row = y // tall
    x = x + (row % 2) * (wide // 2) + int(rng.integers(wide))
    tint = rng.uniform(-1, 1, (h // tall + 2, w // wide + 3)).astype(np.float32)
    shade = tint[row, x // wide] + 0.5 * _noise(rng, h, w, 2, 2)
    brick = (rng.uniform(148, 172), rng.uniform(76, 92), rng.uniform(60, 74))
    mortar = ((y % tall == 0) | (x % wide < 1))[..., None]
    return np.where(mortar, np.float32(rng.uniform(175, 205)), _paint(brick, shade, (20, 14, 12)))


def wooden_floor(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Long boards with grain, lying or standing."""
    if rng.random() < 0.5:
        h, w, turned = w, h, True
    else:
        turned = False
    wide = int(rng.integers(13, 20))
    y = np.arange(h)[:, None] + int(rng.integers(wide))
    board = rng.uniform(-1, 1, h // wide + 2).astype(np.float32)[y // wide]
    shade = 0.7 * board + 0.65 * _noise(rng, h, w, 1.6, 26) + 0.2 * _noise(rng, h, w, 8, 60)
    brown = (rng.uniform(128, 156), rng.uniform(88, 104), rng.uniform(52, 66))
    planks = _paint(brown, shade, (24, 19, 14)) * np.where(y % wide == 0, 0.55, 1)[..., None]
    return planks.transpose(1, 0, 2) if turned else planks


def cloudy_sky(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A blue gradient with soft white clouds."""
    height = np.linspace(1, -1, h, dtype=np.float32)[:, None]
    blue = (rng.uniform(118, 142), rng.uniform(174, 194), rng.uniform(222, 240))
    clear = _paint(blue, np.broadcast_to(-height, (h, w)), (24, 16, 6))
    billow = _noise(rng, h, w, 16, 30) + 0.6 * _noise(rng, h, w, 7, 11) - rng.uniform(-0.2, 0.3)
    cloud = np.clip(billow * 1.6, 0, 0.92)[..., None]
    return clear * (1 - cloud) + cloud * np.float32(246)


TEXTURE: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "grass field": grass_field,
    "sandy beach": sandy_beach,
    "blue lake": blue_lake,
    "brick wall": brick_wall,
    "wooden floor": wooden_floor,
    "cloudy sky": cloudy_sky,
}
FAR = ("cloudy sky", "brick wall", "blue lake")
"""What may stand above a horizon."""
NEAR = ("grass field", "sandy beach", "wooden floor", "blue lake")
"""What may lie below it."""
