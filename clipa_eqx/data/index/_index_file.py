"""The bytes of an index file: a JSON header, a fixed-size record per pair, keys and captions, columns of metadata."""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from ..formats._format import ScannedPair
from ..io._reading import ChangedFileError, FileStamp, read_at


VERSION = 3
RECORD = np.dtype(
    [
        ("place", "<u8"),
        ("size", "<u4"),
        ("text_offset", "<u4"),
        ("text_size", "<u4"),
        ("crc", "<u4"),
    ]
)
"""One pair. `crc` is over the record before it, then the text: the JSON list of key and captions."""

ColumnKind = Literal["number", "word", "hash"]
"""number: float32, NaN for none. word: uint16 index into the column's words, past them for none. hash: of a string,
uint64, 0 for none."""
COLUMN_TYPES: dict[ColumnKind, np.dtype] = {"number": np.dtype("<f4"), "word": np.dtype("<u2"), "hash": np.dtype("<u8")}

_MAGIC = b"clipaidx"
_PREFIX = struct.Struct("<8sII")  # magic, length of the JSON header, CRC-32 of the header
_LARGEST_HEADER = 1 << 24
_MOST_TEXT_BYTES = (1 << 32) - 1
_MOST_COLUMNS = 64
_MOST_WORDS = 1000
"""Distinct values of a column of words; a field with more, as a link, tells rows apart and is kept as a hash."""
_LONGEST_WORD = 64
"""Characters of a value of a column of words."""


class Column(TypedDict):
    """One value per pair: a size, a score, a label or what tells rows apart."""

    kind: ColumnKind
    offset: int
    crc: int
    """CRC-32 of its bytes, the words included."""
    words: int
    """Bytes of the JSON list of words that stands behind a column of words; else 0."""


class IndexHeader(TypedDict):
    """What an index file says of its shard. Offsets are in the index file."""

    version: int
    format: str
    size: int
    """Bytes of the shard."""
    shard_version: int
    """As `FileStamp` has it."""
    count: int
    skipped: dict[str, int]
    checksum: int
    """CRC-32 over records, keys and captions: of two shards alike in it, the pairs are alike."""
    records_offset: int
    texts_offset: int
    columns: dict[str, Column]
    end: int
    """Bytes of the index file."""


def pack_index(shard: FileStamp, format: str, pairs: Sequence[ScannedPair], skipped: Mapping[str, int]) -> bytes:
    """The content of an index file.

    Raises:
        ValueError: keys and captions of the shard take 4 GiB or more.
    """
    records, texts = _pack_pairs(pairs)
    header = IndexHeader(
        version=VERSION,
        format=format,
        size=shard.size,
        shard_version=shard.version,
        count=len(pairs),
        skipped=dict(sorted(skipped.items())),
        checksum=zlib.crc32(texts, zlib.crc32(records)),
        records_offset=0,
        texts_offset=len(records),
        columns={},
        end=0,
    )
    body = [records, texts]
    end = len(records) + len(texts)
    for name, (kind, values, words) in _columns(pairs).items():
        tail = json.dumps(words).encode() if kind == "word" else b""
        content = np.asarray(values, COLUMN_TYPES[kind]).tobytes() + tail
        header["columns"][name] = Column(kind=kind, offset=end, crc=zlib.crc32(content), words=len(tail))
        body.append(content)
        end += len(content)
    header["end"] = end
    head = json.dumps(header).encode()
    return b"".join([_PREFIX.pack(_MAGIC, len(head), zlib.crc32(head)), head, *body])


def read_header(file: FileStamp) -> IndexHeader | None:
    """The header of an index file, with offsets from the start of the file; None when it is damaged or of another
    version."""
    try:
        magic, size, checksum = _PREFIX.unpack(read_at(file, 0, _PREFIX.size))
        if magic != _MAGIC or size > min(_LARGEST_HEADER, file.size):
            return None
        head = read_at(file, _PREFIX.size, size)
    except (OSError, ChangedFileError):
        return None
    if zlib.crc32(head) != checksum:
        return None
    header: IndexHeader = json.loads(head)
    if header["version"] != VERSION:
        return None
    start = _PREFIX.size + size
    header["records_offset"] += start
    header["texts_offset"] += start
    header["end"] += start
    for column in header["columns"].values():
        column["offset"] += start
    return header


def record_crc(record: bytes, text: bytes) -> int:
    """Checksum of a packed record, without its last field, and its text."""
    return zlib.crc32(text, zlib.crc32(record[: -RECORD["crc"].itemsize]))


def _pack_pairs(pairs: Sequence[ScannedPair]) -> tuple[bytes, bytes]:
    texts = [json.dumps([pair.key, *pair.captions], ensure_ascii=False).encode() for pair in pairs]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    if len(texts) and ends[-1] > _MOST_TEXT_BYTES:
        raise ValueError(f"The captions of one shard take {ends[-1]} bytes; split it, an index holds 4 GiB of them.")
    records = np.zeros(len(pairs), RECORD)
    for name in ("place", "size"):
        records[name] = [getattr(pair, name) for pair in pairs]
    records["text_size"] = [len(text) for text in texts]
    records["text_offset"] = ends - records["text_size"]
    records["crc"] = [record_crc(record.tobytes(), text) for record, text in zip(records, texts, strict=True)]
    return records.tobytes(), b"".join(texts)


def hash_text(text: str) -> int:
    """What a column of hashes holds of a text: 64 bits, never 0."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _columns(pairs: Sequence[ScannedPair]) -> dict[str, tuple[ColumnKind, Sequence[int | float], list[str]]]:
    """Kind, values and words of each column: those of every index first, then the metadata of the pairs."""
    columns: dict[str, tuple[ColumnKind, Sequence[int | float], list[str]]] = {
        "width": ("number", [pair.width for pair in pairs], []),
        "height": ("number", [pair.height for pair in pairs], []),
        "caption_characters": ("number", [max(map(len, pair.captions)) for pair in pairs], []),
        "key": ("hash", [hash_text(pair.key) for pair in pairs], []),
    }
    rows = [pair.metadata for pair in pairs]
    for name in _first_names(rows):
        if name not in columns and (column := _metadata_column([row.get(name) for row in rows])):
            columns[name] = column
    return columns


def _metadata_column(
    values: Sequence[float | str | None],
) -> tuple[ColumnKind, Sequence[int | float], list[str]] | None:
    """A field that holds numbers wherever it is given, few short words, or strings without a space that tell rows
    apart; None for prose."""
    if not any(isinstance(value, str) for value in values):
        return "number", [np.nan if value is None else float(value) for value in values], []
    words = sorted({value for value in values if isinstance(value, str)})
    if len(words) <= _MOST_WORDS and max(map(len, words)) <= _LONGEST_WORD:
        places = {word: place for place, word in enumerate(words)}
        return "word", [places.get(str(value), len(words)) for value in values], words
    if any(" " in word for word in words):
        return None
    return "hash", [hash_text(value) if isinstance(value, str) else 0 for value in values], []


def _first_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        if len(names) < _MOST_COLUMNS:
            names.update(dict.fromkeys(row))
    return list(names)[:_MOST_COLUMNS]
