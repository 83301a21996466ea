"""Pictures with their captions on one page, as a PNG picture or an HTML file that needs nothing beside it."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..data import Pair

TILE = 160
"""Side of a picture in pixels."""
_COLUMNS = 6
_TEXT_LINES = 4
_LINE = 13
_LETTERS = 27
"""That fit the width of a tile in Pillow's own font."""

_STYLE = (
    "body { font: 14px/1.4 system-ui, sans-serif; margin: 1rem; display: flex; flex-wrap: wrap; gap: 1rem; }"
    f"figure {{ margin: 0; width: {TILE}px; }} figcaption {{ overflow-wrap: anywhere; }} small {{ color: #57606a; }}"
)


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet."""

    picture: bytes
    """A JPEG of `TILE` pixels a side; empty where the image is broken."""
    key: str
    captions: tuple[str, ...]


def make_tile(pair: "Pair", max_pixels: int) -> Tile:
    """The central square of a pair's image, with what is said of it; a broken image leaves its reason."""
    from PIL import Image

    from ..data import eval_image, ImageError

    try:
        pixels = eval_image(pair.image, TILE, resize="crop", interpolation="bicubic", max_pixels=max_pixels)
    except ImageError as error:
        return Tile(b"", pair.key, (f"broken: {error}", *pair.captions))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return Tile(file.getvalue(), pair.key, pair.captions)


def write_sheet(path: Path, tiles: Sequence[Tile]) -> None:
    """Write a contact sheet.

    Args:
        path: its extension decides: .png or .html.
        tiles: in reading order.

    Raises:
        ValueError: another extension.
    """
    if path.suffix.lower() == ".html":
        path.write_text(_html(tiles), encoding="utf-8")
    elif path.suffix.lower() == ".png":
        path.write_bytes(_png(tiles))
    else:
        raise ValueError(f"A contact sheet is a .png or .html file, got {path.name!r}.")


def _html(tiles: Sequence[Tile]) -> str:
    figures = "".join(
        f"<figure><img alt='' width='{TILE}' height='{TILE}' "
        f"src='data:image/jpeg;base64,{base64.b64encode(tile.picture).decode()}'>"
        f"<figcaption>{'<br>'.join(map(html.escape, tile.captions))}<br><small>{html.escape(tile.key)}</small>"
        "</figcaption></figure>"
        for tile in tiles
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>contact sheet</title>"
        f"<style>{_STYLE}</style></head><body>{figures}</body></html>\n"
    )


def _png(tiles: Sequence[Tile]) -> bytes:
    from PIL import Image, ImageDraw

    height = TILE + _TEXT_LINES * _LINE + 8
    rows = -(-len(tiles) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (TILE + 8), rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        left, top = number % _COLUMNS * (TILE + 8), number // _COLUMNS * height
        if tile.picture:
            sheet.paste(Image.open(io.BytesIO(tile.picture)), (left, top))
        lines = textwrap.wrap(" / ".join(tile.captions), _LETTERS, max_lines=_TEXT_LINES, placeholder=" ...")
        for line, text in enumerate(lines):
            draw.text((left, top + TILE + 2 + line * _LINE), text, fill="black")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
