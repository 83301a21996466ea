"""The classes of the zero-shot set, and which of them training never shows."""

import numpy as np

from ._scene import COLORS, Combination, SHAPES


CLASSES: tuple[Combination, ...] = tuple((shape, color) for shape in SHAPES for color in COLORS)
"""Shape and colour of each class."""
TEMPLATES = ("{c}", "a {c}", "a photo of a {c}", "a picture of a {c}", "there is a {c}")
"""Prompts; {c} is the name of a class."""

_UNSEEN_COLORS = len(COLORS) // 5


def class_name(combination: Combination) -> str:
    """The name of a class, as it stands in prompts."""
    shape, color = combination
    return f"{color} {shape}"


def draw_unseen(seed: int) -> tuple[int, ...]:
    """Indices of the classes left out of training: a fifth of each shape's, spread evenly over the colours.

    Args:
        seed: the world's seed.
    """
    rng = np.random.default_rng(seed)
    shape_order, color_order = rng.permutation(len(SHAPES)), rng.permutation(len(COLORS))
    unseen = [
        shape * len(COLORS) + color_order[(_UNSEEN_COLORS * place + offset) % len(COLORS)]
        for place, shape in enumerate(shape_order)
        for offset in range(_UNSEEN_COLORS)
    ]
    return tuple(sorted(int(index) for index in unseen))
