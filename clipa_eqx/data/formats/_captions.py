"""Captions and metadata out of the text that stands beside an image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


JSON = b"json"
_LONGEST_FIELD = 2000
"""Characters of a metadata string that is kept; links are shorter."""
_LARGEST_NUMBER = 3e38
"""Numbers are kept as float32."""


@dataclass(frozen=True)
class TextKind:
    """A kind of text that stands beside an image."""

    name: str
    """What messages call it; also part of the name of index files."""
    extensions: tuple[bytes, ...]
    """Extensions of its files; the first that is there is read."""


CAPTIONS = TextKind("caption", (b"txt", b"caption", JSON))
"""As img2dataset writes them; of a .json file the field `caption` is read."""

LABELS = TextKind("label", (b"cls",))
"""A class number, as CLIP_benchmark writes it."""


class TextError(ValueError):
    """A text that cannot be used; its message is the reason under which it is counted."""


def read_texts(texts: Mapping[bytes, bytes], kind: TextKind) -> tuple[tuple[str, ...], dict[str, float | str]]:
    """Captions and metadata of one pair.

    Args:
        texts: content of its text files by extension, in the order of `kind.extensions`.
        kind: which of them hold captions.

    Returns:
        The captions, at least one, and the metadata of the .json file; none where that is missing or broken.

    Raises:
        TextError: no caption can be used.
    """
    fields: dict[str, Any] = {}
    if JSON in texts:
        try:
            fields = parse_object(texts[JSON])
        except ValueError:
            fields = {}
    extension, content = next(iter(texts.items()))
    captions = json_captions(fields, kind) if extension == JSON else (clean_caption(content, kind),)
    return captions, scalar_fields(fields)


def parse_object(content: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def json_captions(fields: Mapping[str, Any], kind: TextKind = CAPTIONS) -> tuple[str, ...]:
    """The field `caption` of a JSON object: a text, or a list of texts of which the usable ones are kept.

    Raises:
        TextError: there is no usable text.
    """
    value = fields.get("caption", 0)
    if isinstance(value, str | None):
        return (clean_caption(value or "", kind),)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TextError(f"no {kind.name} in the .json file")
    return usable_captions(value, kind)


def usable_captions(texts: Sequence[bytes | str], kind: TextKind = CAPTIONS) -> tuple[str, ...]:
    """Of several texts those that can be used, cleaned.

    Raises:
        TextError: there is none; the reason is that of the last one.
    """
    usable: list[str] = []
    fault = TextError(f"empty {kind.name}")
    for text in texts:
        try:
            usable.append(clean_caption(text, kind))
        except TextError as error:
            fault = error
    if not usable:
        raise fault
    return tuple(usable)


def clean_caption(text: bytes | str, kind: TextKind = CAPTIONS) -> str:
    """A text without white space around it.

    Raises:
        TextError: it is empty or not UTF-8.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise TextError(f"{kind.name} is not UTF-8") from None
    text = text.strip()
    if not text:
        raise TextError(f"empty {kind.name}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        # JSON can spell half of a surrogate pair, which no encoding can hold.
        raise TextError(f"{kind.name} is not UTF-8")
    return text


def scalar_fields(fields: Mapping[str, Any]) -> dict[str, float | str]:
    """The fields by which a set can be filtered: finite numbers, yes or no as 1 or 0, and strings."""
    found: dict[str, float | str] = {}
    for name, value in fields.items():
        if isinstance(value, str):
            if name != "caption" and len(value) <= _LONGEST_FIELD and value.isprintable():
                found[name] = value
        elif isinstance(value, int | float) and abs(value) <= _LARGEST_NUMBER:
            found[name] = float(value)
    return found
