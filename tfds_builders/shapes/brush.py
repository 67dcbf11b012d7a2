"""A small canvas to draw one object on, at any size, angle and aspect, with smooth edges.

Shapes are given in the object's own units: x right, y down, the object fills about [-1, 1] x [-1, 1].
The canvas holds uint8 RGBA with colours already multiplied by their opacity.
"""

from __future__ import annotations

import cv2
import numpy as np

Colour = tuple[float, float, float]
"""RGB in [0, 255]."""

_BITS = 4
_TURN = np.linspace(0, 2 * np.pi, 25)[:-1]
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


class Brush:
    """Draws polygons and ellipses through one affine map onto a square canvas of `side` pixels."""

    def __init__(self, matrix: np.ndarray, side: int) -> None:
        """`matrix` float64[2,2] maps object units to pixels; the object's origin is the centre."""
        self.matrix = matrix
        self.side = side
        self.canvas = np.zeros((side, side, 4), np.uint8)

    def polygon(self, points: np.ndarray | list[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon of points[k,2] (object units)."""
        pixels = np.asarray(points, np.float64) @ self.matrix.T + (self.side - 1) / 2
        fixed = np.round(pixels * (1 << _BITS)).astype(np.int32)
        cv2.fillPoly(self.canvas, [fixed], (*colour, 255), cv2.LINE_AA, _BITS)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, *, turn: float = 0.0
    ) -> None:
        """Fill an ellipse with half axes (rx, ry), turned by `turn` radians about its centre."""
        points = _CIRCLE * (rx, ry)
        if turn:
            c, s = np.cos(turn), np.sin(turn)
            points = points @ np.array([[c, s], [-s, c]])
        self.polygon(points + np.array([x, y]), colour)

    def disc(self, x: float, y: float, r: float, colour: Colour) -> None:
        """Fill a circle."""
        self.polygon(_CIRCLE * r + (x, y), colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def stroke(
        self, x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour
    ) -> None:
        """Fill a straight bar of the given width between two points."""
        along = np.array([x1 - x0, y1 - y0])
        side = np.array([-along[1], along[0]]) * (width / 2 / max(np.hypot(*along), 1e-6))
        a, b = np.array([x0, y0]), np.array([x1, y1])
        self.polygon(np.stack([a + side, b + side, b - side, a - side]), colour)

    def layer(self) -> Brush:
        """An empty canvas with the same map."""
        return Brush(self.matrix, self.side)

    def paste(self, layer: Brush) -> None:
        """Lay another canvas over this one, only where this one is already painted."""
        here = self.canvas[..., 3:].astype(np.float32) / 255
        over = layer.canvas.astype(np.float32) * here
        kept = self.canvas * (1 - over[..., 3:] / 255)
        self.canvas = np.minimum(kept + over + 0.5, 255).astype(np.uint8)

    def shade(self, strength: float, x: float, y: float) -> None:
        """Brighten towards (x, y) of the canvas's own [-1, 1] square and darken away from it."""
        axis = np.linspace(-1, 1, self.side, dtype=np.float32)
        distance = np.sqrt((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2)
        light = 1 + strength * (0.8 - distance)
        alpha = self.canvas[..., 3:]
        rgb = np.minimum(self.canvas[..., :3] * light[..., None], alpha)
        self.canvas = np.concatenate([np.maximum(rgb, 0).astype(np.uint8), alpha], axis=2)
