"""Which files belong together: an image and the text of the same name. Used alike for tar members and folders."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar


IMAGE_EXTENSIONS = (b"jpg", b"jpeg", b"png", b"webp")

_T = TypeVar("_T")


@dataclass(frozen=True)
class TextKind:
    """A kind of text that stands beside an image."""

    name: str
    """What messages call it; also part of the name of index files."""
    extensions: tuple[bytes, ...]
    """Extensions of its files; the first that is there is read."""


CAPTIONS = TextKind("caption", (b"txt", b"caption", b"json"))
"""As img2dataset writes them; of a .json file the field `caption` is read."""

LABELS = TextKind("label", (b"cls",))
"""A class number, as CLIP_benchmark writes it."""


@dataclass(frozen=True)
class NamedPair(Generic[_T]):
    """An image and its text, with whatever finds them."""

    stem: bytes
    """The name they share, folders included, without the extension."""
    image: _T
    text: _T
    is_json: bool


class TextError(ValueError):
    """A text that cannot be used; its message is the reason under which it is counted."""


def pair_by_name(files: Iterable[tuple[bytes, _T]], kind: TextKind, skipped: Counter[str]) -> Iterator[NamedPair[_T]]:
    """Pair images with texts whose names are the same up to the last dot.

    The names decide, never the order of the files, so no image can get the caption of another. A name that leaves a
    doubt (two images, or one file twice) is left out and counted.

    Args:
        files: name and place of each file.
        kind: the texts to look for.
        skipped: reasons are counted here.

    Yields:
        Pairs in the order in which their first files came.
    """
    groups: dict[bytes, dict[bytes, _T]] = {}
    repeated: set[bytes] = set()
    for name, place in files:
        stem, extension = name.rpartition(b".")[0], extension_of(name)
        # macOS adds a "._" shadow to each file of a tar or a foreign disk.
        if stem.rpartition(b"/")[2].startswith(b"._"):
            continue
        if extension in IMAGE_EXTENSIONS or extension in kind.extensions:
            group = groups.setdefault(stem, {})
            if extension in group:
                repeated.add(stem)
            group[extension] = place
    for stem, group in groups.items():
        images = [group[extension] for extension in IMAGE_EXTENSIONS if extension in group]
        texts = [extension for extension in kind.extensions if extension in group]
        if stem in repeated or len(images) > 1:
            skipped["several files of one name"] += 1
        elif not images:
            skipped[f"{kind.name} without image"] += 1
        elif not texts:
            skipped[f"image without {kind.name}"] += 1
        else:
            yield NamedPair(stem, images[0], group[texts[0]], texts[0] == b"json")


def extension_of(name: bytes) -> bytes:
    """What follows the last dot of a file name, in lower case."""
    return name.rpartition(b".")[2].lower()


def read_text(data: bytes, kind: TextKind, *, is_json: bool) -> str:
    """The text of a file's bytes, without white space around it.

    Raises:
        TextError: it is empty, not UTF-8, or not a JSON object with a caption.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TextError(f"{kind.name} is not UTF-8") from None
    if is_json:
        try:
            text = json.loads(text)["caption"] or ""
        except (ValueError, KeyError, TypeError, RecursionError):
            raise TextError(f"no {kind.name} in the .json file") from None
        if not isinstance(text, str):
            raise TextError(f"no {kind.name} in the .json file")
    text = text.strip()
    if not text:
        raise TextError(f"empty {kind.name}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        # JSON can spell half of a surrogate pair, which no encoding can hold.
        raise TextError(f"{kind.name} is not UTF-8")
    return text
