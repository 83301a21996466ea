"""The samples of each part of the world: what stands in a tar under one key."""

import json
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from ._captions import write_caption, write_full_captions
from ._classes import CLASSES, draw_unseen
from ._render import make_renderer
from ._scene import draw_scene, pick, Scene
from ._shards import encode_jpeg


Part = Literal["train", "classification", "retrieval"]

_STREAMS: dict[Part, int] = {"train": 0, "classification": 1, "retrieval": 2}
"""Number that sets apart the chance of each part."""
_TRAIN_ARRANGEMENTS = ("alone",) * 15 + ("beside",) * 2 + ("above",) * 2 + ("together",) * 1
"""Each entry has the same chance."""
_RETRIEVAL_ARRANGEMENTS = ("beside", "above", "together")
_CAPTIONS_PER_IMAGE = 5


class SampleRange(NamedTuple):
    """Samples `first` up to `end` of one part; each range draws from a stream of chance of its own."""

    part: Part
    first: int
    end: int
    image_size: int
    seed: int


def draw_samples(wanted: SampleRange, *, shard: int) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Draw the samples of a range: their keys, and their files by extension.

    Args:
        wanted: the range.
        shard: number of the tar that they go to.
    """
    rng = np.random.default_rng([wanted.seed, _STREAMS[wanted.part], wanted.first])
    renderer = make_renderer(wanted.image_size)
    unseen = set(draw_unseen(wanted.seed))
    seen = [combination for index, combination in enumerate(CLASSES) if index not in unseen]
    for index in range(wanted.first, wanted.end):
        if wanted.part == "train":
            scene = draw_scene(seen, pick(_TRAIN_ARRANGEMENTS, rng), rng=rng)
            key = f"{shard:05d}{index - wanted.first:04d}"
            texts = _training_texts(key, scene, wanted.image_size, rng)
        elif wanted.part == "classification":
            label = index % len(CLASSES)
            scene = draw_scene(CLASSES[label : label + 1], "alone", rng=rng)
            key, texts = f"s{index:07d}", {"cls": str(label)}
        else:
            scene = draw_scene(CLASSES, pick(_RETRIEVAL_ARRANGEMENTS, rng), rng=rng)
            captions = write_full_captions(scene, _CAPTIONS_PER_IMAGE, rng=rng)
            key, texts = f"s{index:07d}", {"txt": "\n".join(captions)}
        picture = encode_jpeg(renderer.draw(scene, rng=rng))
        yield key, {"jpg": picture} | {extension: text.encode() for extension, text in texts.items()}


def _training_texts(key: str, scene: Scene, image_size: int, rng: np.random.Generator) -> dict[str, str]:
    """A caption, and the record that img2dataset keeps of a pair, less the fields of the download."""
    caption = write_caption(scene, rng=rng)
    record = {
        "caption": caption,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": image_size,
        "height": image_size,
        "original_width": image_size,
        "original_height": image_size,
        "objects": [{"shape": thing.shape, "color": thing.color} for thing in scene.things],
    }
    return {"txt": caption, "json": json.dumps(record)}
