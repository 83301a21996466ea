"""What people say about a scene: short, varied, often incomplete."""

from collections.abc import Sequence

import numpy as np

from ._scene import pick, Scene, Thing


_OPENINGS = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "this is {}",
    "there is {}",
    "here is {}",
    "we see {}",
)
_IDLE_WORDS = (
    "stock photo",
    "free download",
    "high quality",
    "my favorite",
    "for sale",
    "number {}",
    "new wallpaper",
    "do not miss it",
)
"""Words that say nothing about the picture, as the web adds them; {} is a number."""
_RELATIONS = {"beside": ("left of", "right of"), "above": ("above", "below")}
"""How the first of two things stands to the second, and the second to the first."""

_DETAIL = 0.12
"""Chance to name an object's size or texture."""
_BACKGROUND = 0.05
"""Chance to name the background."""
_IDLE = 0.12
"""Chance of idle words."""
_SHAPE_ONLY, _COLOR_ONLY = 0.3, 0.1
"""Chances that a caption of one object leaves out its colour, or its shape."""
_ONE_OF_MANY = 0.1
"""Chance that a caption names one object only where there are more."""


def write_caption(scene: Scene, *, rng: np.random.Generator) -> str:
    """A caption as a web page might carry it: it may leave out colour, shape or whole objects, and add idle words.

    Size, texture and background are seldom named: where the captions of a batch differ in many such words, a model
    tells its pairs apart without looking at shape.

    Args:
        scene: what the picture shows.
        rng: source of chance.
    """
    if len(scene.things) == 1 or rng.random() < _ONE_OF_MANY:
        text = _name_in_part(scene.things[int(rng.random() * len(scene.things))], rng)
    else:
        text = _name_all(scene, rng)
    text = pick(_OPENINGS, rng).format(text)
    if rng.random() < _BACKGROUND:
        text += f" on a {scene.background} background"
    if rng.random() < _IDLE:
        text += " " + pick(_IDLE_WORDS, rng).format(int(rng.random() * 10))
    return text


def write_full_captions(scene: Scene, count: int, *, rng: np.random.Generator) -> list[str]:
    """Captions that name every object of a scene with its colour and shape, each in words of its own.

    Args:
        scene: what the picture shows.
        count: number of captions, at least 1.
        rng: source of chance.
    """
    return [pick(_OPENINGS, rng).format(_name_all(scene, rng)) for _ in range(count)]


def _name_all(scene: Scene, rng: np.random.Generator) -> str:
    phrases = [_name(thing, rng) for thing in scene.things]
    if scene.arrangement not in _RELATIONS:
        return " and ".join(str(phrase) for phrase in rng.permutation(phrases))
    (first, second), (forward, backward) = phrases, _RELATIONS[scene.arrangement]
    return f"{first} {forward} {second}" if rng.random() < 0.5 else f"{second} {backward} {first}"


def _name(thing: Thing, rng: np.random.Generator) -> str:
    """A noun phrase with colour and shape, now and then with size or texture."""
    adjectives = [thing.color]
    if rng.random() < _DETAIL:
        adjectives.insert(0, thing.size if rng.random() < 0.5 else thing.texture)
    if len(adjectives) == 1 and rng.random() < 0.25:
        link = "in" if rng.random() < 0.5 else "that is"
        return f"{_with_article([thing.shape])} {link} {thing.color}"
    return _with_article([*adjectives, thing.shape])


def _name_in_part(thing: Thing, rng: np.random.Generator) -> str:
    chance = rng.random()
    if chance < _SHAPE_ONLY:
        return _with_article([thing.shape])
    if chance < _SHAPE_ONLY + _COLOR_ONLY:
        return f"something {thing.color}" if rng.random() < 0.5 else _with_article([thing.color, "thing"])
    return _name(thing, rng)


def _with_article(words: Sequence[str]) -> str:
    # The h of hourglass is silent.
    silent = words[0][0] in "aeio" or words[0] == "hourglass"
    return " ".join(["an" if silent else "a", *words])
