"""Which fields of a table's row or of a record hold the image, its captions and its name."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..image._picture_size import header_bytes, listed_size, picture_size_of
from ._captions import scalar_fields, TextError, usable_captions
from ._format import LARGEST_IMAGE, LARGEST_TEXT, LONGEST_KEY, ScannedPair


IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "image", "img", "image_bytes", "image/encoded", "filepath")
"""Where images are looked for: the names of img2dataset, `datasets`, TFDS, and open_clip's tables of paths."""
CAPTION_FIELDS = ("txt", "caption", "captions", "text", "captions/text", "title")
"""Where captions are looked for, in the same order of tools."""
_KEY_FIELDS = ("key", "__key__", "image/filename")


class FieldError(ValueError):
    """A table or record lacks what is needed; its message is the reason under which that is counted."""


@dataclass(frozen=True)
class PairFields:
    """Names of the fields to read; where they are empty, the first usual one that is there."""

    image: str = ""
    captions: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Tells indexes apart that were built from different fields."""
        named = [name for name in (self.image, *self.captions) if name]
        return "".join(f"-{name.encode().hex()}" for name in named)

    def find(self, names: Collection[str]) -> "FoundFields":
        """Choose among the fields that are there.

        Raises:
            FieldError: there is no image, or none of its captions.
        """
        image = _first((self.image,) if self.image else IMAGE_FIELDS, names)
        captions = self.captions or (_first(CAPTION_FIELDS, names),)
        missing = "image" if not image else "caption" if not set(captions) <= set(names) else ""
        if missing:
            raise FieldError(f"no {missing} among the fields {', '.join(sorted(names)[:20]) or '(none)'}")
        return FoundFields(image, captions, _first(_KEY_FIELDS, names))


@dataclass(frozen=True)
class FoundFields:
    """Fields that are there."""

    image: str
    captions: tuple[str, ...]
    key: str
    """Empty where rows have no name."""

    def scan_row(
        self, row: Mapping[str, Any], image: bytes, place: int, number: int, skipped: Counter[str]
    ) -> ScannedPair | None:
        """A pair out of a row; None when it cannot be used, which is counted.

        Args:
            row: its fields by name, the image apart.
            image: the image file.
            place: where the image lies, as the format counts.
            number: of the row, its name where it has no other.
            skipped: reasons are counted here.
        """
        texts = [text for name in self.captions for text in _texts(row.get(name))]
        if not 0 < len(image) <= LARGEST_IMAGE:
            skipped["image over 4 GiB" if image else "caption without image"] += 1
            return None
        if sum(map(len, texts)) > LARGEST_TEXT:
            skipped["text over 1 MiB"] += 1
            return None
        try:
            captions = usable_captions(texts)
        except TextError as error:
            skipped[str(error) if texts else "image without caption"] += 1
            return None
        metadata = scalar_fields({name: _plain(value) for name, value in row.items() if name not in self.captions})
        width, height = listed_size(metadata) or picture_size_of(header_bytes(image))
        return ScannedPair(self._name(row, number), place, len(image), captions, width, height, metadata)

    def _name(self, row: Mapping[str, Any], number: int) -> str:
        name = _plain(row.get(self.key))
        if isinstance(name, str) and 0 < len(name) <= LONGEST_KEY and name.isprintable():
            return name
        return str(number)


def failure_of(row: Mapping[str, Any]) -> str:
    """Why img2dataset has no image in a row, as it says itself; empty where it says nothing."""
    status, message = _plain(row.get("status")), _plain(row.get("error_message"))
    return "" if status in (None, "success") else describe_failure(str(message or status))


def describe_failure(message: str) -> str:
    """The reason under which a failure that img2dataset reports is counted."""
    return f"img2dataset: {' '.join(message.split())[:100]}"


def _first(wanted: Collection[str], names: Collection[str]) -> str:
    return next((name for name in wanted if name in names), "")


def _texts(value: Any) -> list[bytes | str]:
    """A text, or a list of texts, as a list."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, bytes | str)]


def _plain(value: Any) -> Any:
    """A value as JSON would hold it: a list of one as that one, bytes as text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        return value[: 2 * LONGEST_KEY].decode("utf-8", "replace")
    return value
