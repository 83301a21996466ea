"""The bytes of an index file: a JSON header, a fixed-size record per pair, keys and captions, columns of metadata."""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from ._format import ScannedPair
from ._reading import ChangedFileError, FileStamp, read_at


VERSION = 2
RECORD = np.dtype(
    [
        ("place", "<u8"),
        ("size", "<u4"),
        ("text_offset", "<u4"),
        ("text_size", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("crc", "<u4"),
    ]
)
"""One pair. `crc` is over the record before it, then the text: the JSON list of key and captions."""

_MAGIC = b"clipaidx"
_PREFIX = struct.Struct("<8sII")  # magic, length of the JSON header, CRC-32 of the header
_LARGEST_HEADER = 1 << 24
_MOST_TEXT_BYTES = (1 << 32) - 1
_MOST_COLUMNS = 64
_MOST_WORDS = 1000
"""Distinct words of a column of labels; a field with more, as a link, is no label."""


class LabelColumn(TypedDict):
    """A field of metadata that holds words."""

    offset: int
    words: list[str]


class IndexHeader(TypedDict):
    """What an index file says of its shard. Offsets are in the index file."""

    version: int
    format: str
    size: int
    """Bytes of the shard."""
    mtime_ns: int
    """Last change of the shard."""
    count: int
    skipped: dict[str, int]
    checksum: int
    """CRC-32 over records, keys and captions: of two shards alike in it, the pairs are alike."""
    records_offset: int
    texts_offset: int
    numbers: dict[str, int]
    """Offset of each column of float32."""
    labels: dict[str, LabelColumn]
    """Each column of uint16 indices into its words; an index past them means none."""
    end: int
    """Bytes of the index file."""


def pack_index(shard: FileStamp, format: str, pairs: Sequence[ScannedPair], skipped: Mapping[str, int]) -> bytes:
    """The content of an index file.

    Raises:
        ValueError: keys and captions of the shard take 4 GiB or more.
    """
    records, texts = _pack_pairs(pairs)
    numbers, labels = _pack_metadata([pair.metadata for pair in pairs])
    header = IndexHeader(
        version=VERSION,
        format=format,
        size=shard.size,
        mtime_ns=shard.mtime_ns,
        count=len(pairs),
        skipped=dict(sorted(skipped.items())),
        checksum=zlib.crc32(texts, zlib.crc32(records)),
        records_offset=0,
        texts_offset=len(records),
        numbers={},
        labels={},
        end=0,
    )
    body = [records, texts]
    end = len(records) + len(texts)
    for name, column in numbers.items():
        header["numbers"][name] = end
        body.append(column.tobytes())
        end += column.nbytes
    for name, (indices, words) in labels.items():
        header["labels"][name] = LabelColumn(offset=end, words=words)
        body.append(indices.tobytes())
        end += indices.nbytes
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
    header["numbers"] = {name: offset + start for name, offset in header["numbers"].items()}
    for column in header["labels"].values():
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
    for name in ("place", "size", "width", "height"):
        records[name] = [getattr(pair, name) for pair in pairs]
    records["text_size"] = [len(text) for text in texts]
    records["text_offset"] = ends - records["text_size"]
    records["crc"] = [record_crc(record.tobytes(), text) for record, text in zip(records, texts, strict=True)]
    return records.tobytes(), b"".join(texts)


def _pack_metadata(
    rows: Sequence[Mapping[str, float | str]],
) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, list[str]]]]:
    """Columns of the fields that hold numbers in every pair that has them, and of those that hold few words."""
    numbers: dict[str, np.ndarray] = {}
    labels: dict[str, tuple[np.ndarray, list[str]]] = {}
    for name in _first_names(rows):
        values = [row.get(name) for row in rows]
        if not any(isinstance(value, str) for value in values):
            numbers[name] = np.array([np.nan if value is None else value for value in values], "<f4")
            continue
        words = sorted({value for value in values if isinstance(value, str)})
        if len(words) <= _MOST_WORDS:
            places = {word: place for place, word in enumerate(words)}
            labels[name] = np.array([places.get(str(value), len(words)) for value in values], "<u2"), words
    return numbers, labels


def _first_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        if len(names) < _MOST_COLUMNS:
            names.update(dict.fromkeys(row))
    return list(names)[:_MOST_COLUMNS]
