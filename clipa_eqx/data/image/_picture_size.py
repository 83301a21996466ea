"""The size of a picture in pixels, without decoding it."""

import io
from collections.abc import Mapping
from io import BufferedIOBase

from PIL import Image

from ._image import FORMATS


_MOST_HEADER_BYTES = 1 << 18
"""Read in search of the size; embedded previews and colour profiles can stand before it."""
_FIRST_READ = 1 << 12


def listed_size(metadata: Mapping[str, float | str]) -> tuple[int, int] | None:
    """Width and height as img2dataset writes them beside a picture, after its own resizing; None if they are not."""
    width, height = metadata.get("width"), metadata.get("height")
    if isinstance(width, float) and isinstance(height, float) and min(width, height) >= 1 and max(width, height) < 1e9:
        return int(width), int(height)
    return None


def picture_size(file: BufferedIOBase, offset: int, size: int) -> tuple[int, int]:
    """Width and height from the header of a picture that lies in a file; zeros where it cannot be read."""
    for length in (_FIRST_READ, _MOST_HEADER_BYTES):
        file.seek(offset)
        found = picture_size_of(file.read(min(length, size)))
        if found != (0, 0) or size <= length:
            return found
    return 0, 0


def header_bytes(image: bytes) -> bytes:
    """As much of an image file as is searched for its size."""
    return image[:_MOST_HEADER_BYTES]


def picture_size_of(data: bytes) -> tuple[int, int]:
    """Width and height from the first bytes of a picture; zeros where they do not tell."""
    try:
        # Opening reads the header only.
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.size
    except Exception:  # a broken header makes Pillow raise whatever it stumbles over
        return 0, 0
