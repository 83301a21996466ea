"""Silhouettes as polygons, and their antialiased masks."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw


Points = Float[np.ndarray, "points 2"]
"""Corners of a polygon, x to the right and y down, inside the unit circle."""

_SUPERSAMPLING = 3
"""Subpixels along each side of a pixel."""


class Silhouette(NamedTuple):
    """A filled polygon, less a polygon that may reach beyond it."""

    outline: Points
    hole: Points | None = None


def draw_mask(
    silhouette: Silhouette, size: int, *, center: tuple[float, float], radius: float, turn: float
) -> Float[np.ndarray, "size size"]:
    """How much of each pixel of a square picture a silhouette covers, 0 to 1.

    Args:
        silhouette: what to draw.
        size: side of the picture in pixels.
        center: x and y of the middle, as shares of the side.
        radius: of the circle around the silhouette, as a share of the side.
        turn: angle in radians, clockwise.
    """
    side = size * _SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    cos, sin = radius * math.cos(turn), radius * math.sin(turn)
    rotation = np.array([[cos, sin], [-sin, cos]])
    for points, value in ((silhouette.outline, 255), (silhouette.hole, 0)):
        if points is not None:
            pen.polygon(((points @ rotation + center) * side).ravel().tolist(), fill=value)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32) / 255


def _polygon(corners: Sequence[tuple[int, int]]) -> Points:
    points = np.array(corners, float)
    return points / np.linalg.norm(points, axis=1).max()


def _polar(radius: Float[np.ndarray, " points"]) -> Points:
    """Points at equal angles, the first straight up."""
    angle = np.arange(radius.size) * 2 * math.pi / radius.size
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _heart() -> Points:
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    down = 5 * np.cos(2 * angle) + 2 * np.cos(3 * angle) + np.cos(4 * angle) - 13 * np.cos(angle)
    points = np.stack([16 * np.sin(angle) ** 3, down - 2.5], axis=1)
    return points / np.linalg.norm(points, axis=1).max()


_CIRCLE = _polar(np.ones(48))

SILHOUETTES: Mapping[str, Silhouette] = {
    "circle": Silhouette(_CIRCLE),
    "square": Silhouette(_polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)])),
    "triangle": Silhouette(_polar(np.ones(3))),
    "star": Silhouette(_polar(np.tile([1.0, 0.42], 5))),
    "heart": Silhouette(_heart()),
    "cross": Silhouette(
        _polygon(
            [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
        )
    ),
    "ring": Silhouette(_CIRCLE, 0.58 * _CIRCLE),
    "crescent": Silhouette(_CIRCLE, 0.85 * _CIRCLE + [0.5, 0.0]),
    "arrow": Silhouette(_polygon([(0, -10), (8, -1), (3, -1), (3, 10), (-3, 10), (-3, -1), (-8, -1)])),
    "flower": Silhouette(_polar(0.45 + 0.55 * np.abs(np.cos(3 * np.linspace(0, 2 * math.pi, 72, endpoint=False))))),
    "hourglass": Silhouette(_polygon([(-7, -9), (7, -9), (1, 0), (7, 9), (-7, 9), (-1, 0)])),
    "bolt": Silhouette(_polygon([(1, -10), (6, -10), (2, -2), (7, -2), (-4, 10), (-1, 1), (-6, 1)])),
}
"""Name and form of each shape."""
