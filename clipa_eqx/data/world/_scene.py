"""What a picture of the world shows, drawn at random."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._shapes import SILHOUETTES


SHAPES = tuple(SILHOUETTES)
COLORS = {
    "red": (222, 40, 40),
    "orange": (250, 140, 24),
    "yellow": (248, 226, 56),
    "green": (44, 186, 70),
    "cyan": (60, 216, 226),
    "blue": (58, 96, 236),
    "purple": (150, 60, 200),
    "pink": (252, 138, 194),
    "white": (246, 246, 246),
    "brown": (144, 90, 52),
}
"""Name and sRGB value of each colour."""
SIZES = {"small": (0.58, 0.66), "medium": (0.72, 0.82), "large": (0.88, 1.0)}
"""Name of each size and the share of its place that the circle around an object spans."""
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = {
    "gray": (48, 48, 48),
    "sandy": (66, 58, 44),
    "slate": (34, 42, 54),
    "mossy": (38, 50, 34),
    "clay": (58, 42, 38),
}
"""Name and sRGB value of each background: muted, and darker than any object, so that brightness tells where one is. A
tiny transformer then finds silhouettes in tens of thousands of pictures; before backgrounds of any brightness it takes
several times as many."""
FINISHES = ("plain", "graded", "cloudy", "grainy")

_TEXTURED = 0.3
"""Chance of a texture other than plain."""
_MOST_TURN = math.radians(20)
_PLACES = {
    "alone": [(0.5, 0.5, 1.0)],
    "beside": [(0.26, 0.5, 0.52), (0.74, 0.5, 0.52)],
    "above": [(0.5, 0.26, 0.52), (0.5, 0.74, 0.52)],
    "together": [(0.27, 0.27, 0.5), (0.73, 0.27, 0.5), (0.5, 0.74, 0.5)],
}
"""Per arrangement, the middle and the side of each object's place as shares of the picture."""

Combination = tuple[str, str]
"""A shape and a colour."""


@dataclass(frozen=True)
class Thing:
    """One object."""

    shape: str
    color: str
    size: str
    texture: str
    center: tuple[float, float]
    """x and y as shares of the picture's side."""
    radius: float
    """Of the circle around the object, as a share of the side."""
    turn: float
    """Radians, clockwise."""


@dataclass(frozen=True)
class Scene:
    """One picture, before pixels."""

    things: tuple[Thing, ...]
    """From left to right, or from top to bottom."""
    arrangement: str
    """alone, beside (in a row), above (one over the other) or together (three)."""
    background: str
    finish: str


def draw_scene(combinations: Sequence[Combination], arrangement: str, *, rng: np.random.Generator) -> Scene:
    """Draw a scene; its objects are of the combinations given, each of another shape and colour than the others.

    Args:
        combinations: pairs of shape and colour to choose from.
        arrangement: alone, beside, above or together.
        rng: source of chance.
    """
    chosen: list[Combination] = []
    for _ in _PLACES[arrangement]:
        chosen.append(_draw_combination(combinations, chosen, rng))
    things = tuple(
        _draw_thing(combination, place, rng) for combination, place in zip(chosen, _PLACES[arrangement], strict=True)
    )
    return Scene(things, arrangement, pick(list(BACKGROUNDS), rng), pick(FINISHES, rng))


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, each with the same chance."""
    return options[int(rng.random() * len(options))]


def _draw_combination(
    combinations: Sequence[Combination], taken: Sequence[Combination], rng: np.random.Generator
) -> Combination:
    while True:
        shape, color = combinations[int(rng.random() * len(combinations))]
        if all(shape != other_shape and color != other_color for other_shape, other_color in taken):
            return shape, color


def _draw_thing(combination: Combination, place: tuple[float, float, float], rng: np.random.Generator) -> Thing:
    shape, color = combination
    x, y, side = place
    size = pick(list(SIZES), rng)
    texture = pick(TEXTURES[1:], rng) if rng.random() < _TEXTURED else TEXTURES[0]
    low, high = SIZES[size]
    share, right, down, turn = rng.random(4)
    diameter = side * (low + (high - low) * share)
    slack = side - diameter
    center = x + slack * (right - 0.5), y + slack * (down - 0.5)
    return Thing(shape, color, size, texture, center, diameter / 2, _MOST_TURN * (2 * turn - 1))
