"""The index of a tar shard: where each image and its text lie. Built once, kept in a file, read by offset.

An index file is a JSON header and one fixed-size record per pair. Records are read when asked for and never held, so
a set of 4e8 pairs costs a few kilobytes per shard instead of 20 GB.
"""

import glob
import hashlib
import json
import os
import struct
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from typing import Any, NamedTuple

from ._pairing import extension_of, NamedPair, pair_by_name, read_text, TextError, TextKind
from ._reading import ChangedFileError, FileStamp, read_at, stamp_file
from ._tar import scan_tar, TarError


_VERSION = 1
_MAGIC = b"clipaidx"
_PREFIX = struct.Struct("<8sII")  # magic, length of the JSON header, CRC-32 of header and records
_PLACES = struct.Struct("<QQIII?")  # image offset, text offset, image size, text size, CRC-32 of the text, is JSON
_SCAN_BUFFER = 1 << 17
_LONGEST_NAME = 1000
_LARGEST_IMAGE = (1 << 32) - 1
_LARGEST_TEXT = 1 << 20


class IndexedPair(NamedTuple):
    """Where one pair lies in its shard."""

    key: str
    image_offset: int
    image_size: int
    text_offset: int
    text_size: int
    text_crc: int
    is_json: bool


@dataclass(frozen=True)
class ShardIndex:
    """The pairs of one tar, found through its index file."""

    shard: FileStamp
    kind: TextKind
    file: FileStamp
    """The index file."""
    records_offset: int
    record_size: int
    count: int
    skipped: dict[str, int]
    """How many files of the tar were left out, by reason."""
    checksum: int
    """Over names, places and texts of all pairs."""

    def locate(self, place: int) -> IndexedPair:
        """Read the record of one pair."""
        record = read_at(self.file, self.records_offset + place * self.record_size, self.record_size)
        image_offset, text_offset, image_size, text_size, text_crc, is_json = _PLACES.unpack_from(record)
        key = record[_PLACES.size :].rstrip(b"\0").decode("utf-8", "replace")
        return IndexedPair(key, image_offset, image_size, text_offset, text_size, text_crc, is_json)

    def read_image(self, pair: IndexedPair) -> bytes:
        """The bytes of a pair's image file."""
        return read_at(self.shard, pair.image_offset, pair.image_size)

    def read_text(self, pair: IndexedPair) -> str:
        """A pair's text.

        Raises:
            ChangedFileError: it is not the text that was indexed.
        """
        data = read_at(self.shard, pair.text_offset, pair.text_size)
        if zlib.crc32(data) != pair.text_crc:
            raise ChangedFileError(f"{self.shard.path} no longer holds what was indexed under {pair.key!r}.")
        return read_text(data, self.kind, is_json=pair.is_json)


def open_shard_index(shard: Path, kind: TextKind) -> ShardIndex:
    """Read the index of a shard, or build and keep it when there is none that fits the shard's size and time.

    Index files are kept in a folder `.clipa_index` beside the shard; where that cannot be written, in the user's cache
    folder. They are replaced as a whole, so processes that build the same index at once do each other no harm.

    Raises:
        OSError: the shard cannot be read, or no index file can be written in either place.
    """
    stamp = stamp_file(shard)
    paths = _index_paths(stamp, kind)
    for path in paths:
        index = _load(path, stamp, kind)
        if index is not None:
            return index
    content = _build(stamp, kind)
    failures: list[str] = []
    for path in paths:
        try:
            _replace_index(path, content)
        except OSError as error:
            failures.append(str(error))
            continue
        index = _load(path, stamp, kind)
        if index is None:
            raise OSError(f"{path} was written but cannot be read back.")
        return index
    raise OSError(
        f"The index of {shard} cannot be written ({'; '.join(failures)}): make one of these folders writable, or set "
        "XDG_CACHE_HOME to a folder that is."
    )


def _index_paths(shard: FileStamp, kind: TextKind) -> tuple[Path, Path]:
    """Beside the shard and in the user's cache folder; the name tells the shard's state, and so the content."""
    folder = shard.path.absolute().parent
    name = f"{shard.path.name}.{kind.name}.{shard.size:x}-{shard.mtime_ns:x}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return folder / ".clipa_index" / name, cache / "clipa_eqx" / "index" / digest / name


def _replace_index(path: Path, content: bytes) -> None:
    """Write an index file as a whole, and remove those of earlier states of the shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    for other in path.parent.glob(f"{glob.escape(path.stem)}.*"):
        if other != path:
            other.unlink(missing_ok=True)


def _load(path: Path, shard: FileStamp, kind: TextKind) -> ShardIndex | None:
    """The index in a file; None when there is none, when it is damaged, or when it is of another state of the shard."""
    try:
        file = stamp_file(path, replaceable=True)
        content = read_at(file, 0, file.size)
    except (OSError, ChangedFileError):
        return None
    if len(content) < _PREFIX.size:
        return None
    magic, header_size, checksum = _PREFIX.unpack_from(content)
    if magic != _MAGIC or zlib.crc32(memoryview(content)[_PREFIX.size :]) != checksum:
        return None
    header: dict[str, Any] = json.loads(content[_PREFIX.size : _PREFIX.size + header_size])
    state = [header.get(name) for name in ("version", "kind", "size", "mtime_ns")]
    if state != [_VERSION, kind.name, shard.size, shard.mtime_ns]:
        return None
    return ShardIndex(
        shard=shard,
        kind=kind,
        file=file,
        records_offset=_PREFIX.size + header_size,
        record_size=header["record_size"],
        count=header["count"],
        skipped=header["skipped"],
        checksum=zlib.crc32(memoryview(content)[_PREFIX.size + header_size :]),
    )


def _build(shard: FileStamp, kind: TextKind) -> bytes:
    skipped: Counter[str] = Counter()
    with BufferedReader(FileIO(shard.path), _SCAN_BUFFER) as file:
        found = list(pair_by_name(_read_members(file, shard.size, kind, skipped), kind, skipped))
    records: list[tuple[bytes, bytes]] = []
    for pair in found:
        try:
            read_text(pair.text.content, kind, is_json=pair.is_json)
        except TextError as error:
            skipped[str(error)] += 1
        else:
            records.append((pair.stem, _pack_places(pair)))
    key_size = max((len(stem) for stem, _ in records), default=0)
    body = b"".join(places + stem.ljust(key_size, b"\0") for stem, places in records)
    header = {
        "version": _VERSION,
        "kind": kind.name,
        "size": shard.size,
        "mtime_ns": shard.mtime_ns,
        "record_size": _PLACES.size + key_size,
        "count": len(records),
        "skipped": skipped,
    }
    head = json.dumps(header).encode()
    return _PREFIX.pack(_MAGIC, len(head), zlib.crc32(body, zlib.crc32(head))) + head + body


class _File(NamedTuple):
    offset: int
    size: int
    content: bytes
    """Of a text; empty for an image."""


def _read_members(
    file: BufferedIOBase, file_size: int, kind: TextKind, skipped: Counter[str]
) -> Iterator[tuple[bytes, _File]]:
    """Name and place of each member, and the content of texts, in one pass over the tar."""
    try:
        for name, offset, size in scan_tar(file, file_size):
            is_text = extension_of(name) in kind.extensions
            if len(name) > _LONGEST_NAME:
                skipped["name over 1000 bytes"] += 1
            elif size > (_LARGEST_TEXT if is_text else _LARGEST_IMAGE):
                skipped["text over 1 MiB" if is_text else "image over 4 GiB"] += 1
            else:
                content = b""
                if is_text:
                    file.seek(offset)
                    content = file.read(size)
                yield name, _File(offset, size, content)
    except TarError as error:
        skipped[str(error)] += 1


def _pack_places(pair: NamedPair[_File]) -> bytes:
    image, text = pair.image, pair.text
    return _PLACES.pack(image.offset, text.offset, image.size, text.size, zlib.crc32(text.content), pair.is_json)
