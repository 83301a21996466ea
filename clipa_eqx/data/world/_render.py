"""Scenes to pixels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from ._scene import BACKGROUNDS, COLORS, Scene, Thing
from ._shapes import draw_mask, SILHOUETTES


_VARIANTS = 64
"""Patterns of each kind that a renderer prepares."""
_SECOND_TONE = 0.7
"""What a texture multiplies the object's tone by."""

Pattern = Float[np.ndarray, "size size"]
"""One value per pixel."""


@dataclass(frozen=True)
class Renderer:
    """Draws scenes of one picture size, from patterns prepared once."""

    size: int
    """Side of a picture in pixels."""
    textures: dict[str, list[Pattern]]
    """Patterns of each texture but plain: 0 is the object's own tone, 1 its second tone."""
    finishes: dict[str, list[Pattern]]
    """Patterns of each finish but plain, about -1 to 1."""

    def draw(self, scene: Scene, *, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        """The picture of a scene; tones, patterns and sensor noise are left to chance.

        Args:
            scene: what to show.
            rng: source of chance.
        """
        tint = _vary(BACKGROUNDS[scene.background], rng)
        picture = np.broadcast_to(tint, (self.size, self.size, 3)).copy()
        if scene.finish in self.finishes:
            picture += (16 * _any(self.finishes[scene.finish], rng))[..., None]
        for thing in scene.things:
            mask = draw_mask(
                SILHOUETTES[thing.shape], self.size, center=thing.center, radius=thing.radius, turn=thing.turn
            )
            picture += mask[..., None] * (self._paint(thing, rng) - picture)
        picture += 5 * _any(self.finishes["grainy"], rng)[..., None]
        return np.clip(picture, 0, 255).astype(np.uint8)

    def _paint(self, thing: Thing, rng: np.random.Generator) -> Float[np.ndarray, "rows cols 3"]:
        tone = _vary(COLORS[thing.color], rng)
        if thing.texture not in self.textures:
            return tone[None, None]
        return tone * (1 - (1 - _SECOND_TONE) * _any(self.textures[thing.texture], rng)[..., None])


def make_renderer(size: int) -> Renderer:
    """Prepare the patterns for pictures of `size` pixels; the same ones each time."""
    rng = np.random.default_rng(0)
    many = lambda make: [make(size, rng).astype(np.float32) for _ in range(_VARIANTS)]
    return Renderer(
        size=size,
        textures={"striped": many(_stripes), "dotted": many(_dots), "checkered": many(_checks)},
        finishes={"graded": many(_gradient), "cloudy": many(_clouds), "grainy": many(_grain)},
    )


def _vary(color: tuple[int, int, int], rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """A colour made a little lighter or darker, and a little tinted."""
    return np.array(color, np.float32) + np.float32(rng.uniform(-14, 14)) + rng.uniform(-8, 8, 3).astype(np.float32)


def _any(patterns: list[Pattern], rng: np.random.Generator) -> Pattern:
    return patterns[int(rng.random() * len(patterns))]


def _waves(size: int, rng: np.random.Generator, periods: tuple[float, float]) -> tuple[Pattern, Pattern]:
    """Two sine waves at right angles, in a random direction with a random number of periods per picture."""
    angle, count = rng.uniform(0, np.pi), rng.uniform(*periods)
    y, x = np.mgrid[:size, :size] / size
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    first, second = rng.uniform(0, 1, 2)
    return np.sin(2 * np.pi * (count * along + first)), np.sin(2 * np.pi * (count * across + second))


def _stripes(size: int, rng: np.random.Generator) -> Pattern:
    return np.clip(0.5 + 2 * _waves(size, rng, (5.0, 9.0))[0], 0, 1)


def _dots(size: int, rng: np.random.Generator) -> Pattern:
    along, across = _waves(size, rng, (6.0, 9.0))
    return np.clip(3 * (along + across - 0.9), 0, 1)


def _checks(size: int, rng: np.random.Generator) -> Pattern:
    along, across = _waves(size, rng, (3.0, 5.0))
    return np.clip(0.5 + 4 * along * across, 0, 1)


def _gradient(size: int, rng: np.random.Generator) -> Pattern:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / size - 0.5
    return 1.6 * (x * np.cos(angle) + y * np.sin(angle))


def _clouds(size: int, rng: np.random.Generator) -> Pattern:
    return sum((_waves(size, rng, (0.5, 2.5))[0] for _ in range(4)), np.zeros((size, size))) / 3


def _grain(size: int, rng: np.random.Generator) -> Pattern:
    return np.clip(rng.normal(0, 0.5, (size, size)), -1.5, 1.5)
