"""Tars as webdataset reads and img2dataset writes them: the files of a pair share a name."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import NamedTuple

from ..image._picture_size import listed_size, picture_size
from ..io._reading import FileStamp, open_in_order, read_at
from ._captions import CAPTIONS, read_texts, TextError, TextKind
from ._format import LARGEST_IMAGE, LARGEST_TEXT, LONGEST_KEY, ScannedPair
from ._img2dataset import count_failures
from ._pairing import extension_of, pair_by_name
from ._tar import scan_tar, TarError


@dataclass(frozen=True)
class TarFormat:
    """Tar members `key.jpg` with `key.txt`, `key.caption` or `key.json`; or with `key.cls`, for labels."""

    kind: TextKind = CAPTIONS

    @property
    def name(self) -> str:
        """The kind of text, which decides what is a pair."""
        return f"tar-{self.kind.name}"

    @property
    def needs(self) -> str:
        """Two members of one name."""
        return f"members such as 000.jpg and 000.{self.kind.extensions[0].decode()}"

    def scan(self, shard: FileStamp, skipped: Counter[str]) -> Iterator[ScannedPair]:
        """Every pair that lies in the tar as a whole; a tar that is cut short gives those before the cut."""
        count_failures(shard.path, skipped)
        with open_in_order(shard) as file:
            for pair in pair_by_name(self._members(file, shard.size, skipped), self.kind, skipped):
                texts = {extension: member.content for extension, member in pair.texts.items()}
                try:
                    captions, metadata = read_texts(texts, self.kind)
                except TextError as error:
                    skipped[str(error)] += 1
                    continue
                image = pair.image
                width, height = listed_size(metadata) or picture_size(file, image.offset, image.size)
                key = pair.stem.decode("utf-8", "replace")
                yield ScannedPair(key, image.offset, image.size, captions, width, height, metadata)

    def read_image(self, shard: FileStamp, place: int, size: int) -> bytes:
        """The bytes of a member."""
        return read_at(shard, place, size)

    def _members(
        self, file: BufferedIOBase, file_size: int, skipped: Counter[str]
    ) -> Iterator[tuple[bytes, "_Member"]]:
        """Name and place of each member, and the content of texts, in one pass over the tar."""
        try:
            for name, offset, size in scan_tar(file, file_size):
                is_text = extension_of(name) in self.kind.extensions
                if len(name) > LONGEST_KEY:
                    skipped["name over 1000 bytes"] += 1
                elif size > (LARGEST_TEXT if is_text else LARGEST_IMAGE):
                    skipped["text over 1 MiB" if is_text else "image over 4 GiB"] += 1
                else:
                    content = b""
                    if is_text:
                        file.seek(offset)
                        content = file.read(size)
                    yield name, _Member(offset, size, content)
        except TarError as error:
            skipped[str(error)] += 1


class _Member(NamedTuple):
    offset: int
    size: int
    content: bytes
    """Of a text; empty for an image."""
