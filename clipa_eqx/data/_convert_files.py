"""The files that a conversion writes."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .formats._example import write_example
from .formats._fields import CAPTION_FIELDS, IMAGE_FIELDS
from .world._shards import write_shard


class WrittenPair(NamedTuple):
    """What is written of a pair."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    metadata: Mapping[str, float | str]


class Writer(NamedTuple):
    """How a kind of file is written."""

    extension: str
    write: Callable[[Path, Iterable[WrittenPair]], None]


def write_pairs_tar(path: Path, pairs: Iterable[WrittenPair]) -> None:
    """A tar as img2dataset writes it: `key.jpg`, `key.txt`, `key.json`; several captions stand in `key.json` only."""
    # Keys of the source may repeat, or be no file names.
    write_shard(path, ((f"{number:09d}", _members(pair)) for number, pair in enumerate(pairs)))


def write_pairs_array_record(path: Path, pairs: Iterable[WrittenPair]) -> None:
    """An ArrayRecord file with a group for each record, so that one is read alone."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # Images are compressed already.
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for pair in pairs:
            captions = list(pair.captions)
            text = {"txt": captions[0]} if len(captions) == 1 else {"caption": captions}
            writer.write(write_example({**_described(pair), **text, image_kind(pair.image): pair.image}))
    finally:
        writer.close()


WRITERS = {
    "tar": Writer("tar", write_pairs_tar),
    "array-record": Writer("array_record", write_pairs_array_record),
}


def image_kind(image: bytes) -> str:
    """The extension of an image file, by its first bytes."""
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"


def _members(pair: WrittenPair) -> dict[str, bytes]:
    captions = list(pair.captions)
    text = {"txt": captions[0].encode()} if len(captions) == 1 else {}
    fields = {**_described(pair), "caption": captions[0] if text else captions}
    return {image_kind(pair.image): pair.image, **text, "json": json.dumps(fields, ensure_ascii=False).encode()}


def _described(pair: WrittenPair) -> dict[str, Any]:
    """Metadata and key, whole numbers as such, without names that stand for images and captions."""
    numbers = {name: int(value) for name, value in pair.metadata.items() if isinstance(value, float) and value % 1 == 0}
    described = {**pair.metadata, **numbers, "key": pair.key}
    return {name: value for name, value in described.items() if name not in (*IMAGE_FIELDS, *CAPTION_FIELDS)}
