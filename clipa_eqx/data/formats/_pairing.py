"""Which files belong together: an image and the texts of the same name. Used alike for tar members and folders."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ._captions import TextKind


IMAGE_EXTENSIONS = (b"jpg", b"jpeg", b"png", b"webp")

_T = TypeVar("_T")


@dataclass(frozen=True)
class NamedPair(Generic[_T]):
    """An image and its texts, with whatever finds them."""

    stem: bytes
    """The name they share, folders included, without the extension."""
    image: _T
    texts: Mapping[bytes, _T]
    """By extension, at least one."""


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
        texts = {extension: group[extension] for extension in kind.extensions if extension in group}
        if stem in repeated or len(images) > 1:
            skipped["several files of one name"] += 1
        elif not images:
            skipped[f"{kind.name} without image"] += 1
        elif not texts:
            skipped[f"image without {kind.name}"] += 1
        else:
            yield NamedPair(stem, images[0], texts)


def extension_of(name: bytes) -> bytes:
    """What follows the last dot of a file name, in lower case."""
    return name.rpartition(b".")[2].lower()
