"""What a set of captioned images is to the rest of the package."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Pair:
    """One image file and its caption."""

    key: str
    """Tells the user which record this is: tar and name in it, or path."""
    image: bytes
    """The image file as it lies on disk."""
    captions: tuple[str, ...]
    """What was written about it; at least one."""


@runtime_checkable
class PairSource(Protocol):
    """Captioned images by index. Several threads read at once, and a pickled copy reads the same."""

    @property
    def skipped(self) -> dict[str, int]:
        """How many records were left out when the source was opened, by reason."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the data changes, so that an order of training is not continued over other data."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair:
        """Read a pair; OSError when its image cannot be read."""
        ...

    def key(self, index: int, /) -> str:
        """Which record a pair is, without reading its image."""
        ...

    def captions(self, index: int, /) -> tuple[str, ...]:
        """The captions of a pair alone, without reading its image."""
        ...
