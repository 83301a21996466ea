"""What a kind of shard is to the index: how its pairs are found, and how an image is read back."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ..io._reading import FileStamp


LARGEST_IMAGE = (1 << 32) - 1
"""Bytes of an image file that an index can hold."""
LARGEST_TEXT = 1 << 20
"""Bytes of a text or metadata record that are believed."""
LONGEST_KEY = 1000
"""Bytes of a key that are believed."""


@dataclass(frozen=True)
class ScannedPair:
    """One pair as a scan of its shard found it."""

    key: str
    """Tells the user which record this is, inside its shard."""
    place: int
    """Where the image lies: a byte offset, or whatever number its format reads it by."""
    size: int
    """Bytes of the image file."""
    captions: tuple[str, ...]
    """At least one; not empty, no lone surrogates."""
    width: int = 0
    """Of the image in pixels; 0 when its header cannot be read."""
    height: int = 0
    metadata: Mapping[str, float | str] = field(default_factory=dict)
    """Scores and labels that stand beside the pair, by name."""


@runtime_checkable
class ShardFormat(Protocol):
    """How the pairs of one kind of file are found and read. Instances are immutable and pickle."""

    @property
    def name(self) -> str:
        """A word for file names: two formats of one name index a shard alike."""
        ...

    @property
    def needs(self) -> str:
        """What a shard must hold to give a pair, for messages."""
        ...

    def scan(self, shard: FileStamp, skipped: Counter[str]) -> Iterator[ScannedPair]:
        """Every whole pair, once; what cannot be used is counted in `skipped` by reason, and never raised."""
        ...

    def read_image(self, shard: FileStamp, place: int, size: int) -> bytes:
        """The image file that a scan found.

        Raises:
            ChangedFileError: the shard is not what it was when it was scanned.
            OSError: it cannot be read.
        """
        ...
