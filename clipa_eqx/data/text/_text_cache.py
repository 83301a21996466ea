"""Token ids and word classes of a shard's captions, computed once and kept beside its index, read by offset.

A caption takes 2 bytes and 2 bits a piece (4 bytes where a vocabulary has more than 65,536 entries) and 8 bytes more.
Nothing is held in memory but the offsets of the file's parts.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from ..index._index import ShardIndex
from ..io._reading import ChangedFileError, FileStamp, read_at, stamp_file
from ..io._writing import write_whole
from ._classifier import WordClassifier
from ._ragged import Ragged
from ._tokenizer import Tokenizer


MOST_PIECES = 512
"""Pieces of a caption that are kept."""

_VERSION = 1
_MAGIC = b"clipatxt"
_PREFIX = struct.Struct("<8sII")  # magic, length of the JSON header, CRC-32 of the header
_LARGEST_HEADER = 1 << 12
_ENTRY = np.dtype([("start", "<u4"), ("crc", "<u4")])
"""Of each caption: where its bytes begin and their CRC-32; one more entry says where the last ones end."""
_MOST_BYTES = (1 << 32) - 1
_CAPTIONS_AT_ONCE = 4096


@dataclass(frozen=True)
class TextRules:
    """How captions become pieces with classes."""

    tokenizer: Tokenizer
    classifier: WordClassifier

    @property
    def key(self) -> str:
        """Changes when the pieces or the class of any caption could."""
        parts = [_VERSION, self.tokenizer.fingerprint, self.classifier.fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def id_type(self) -> np.dtype:
        """In which ids are kept."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class TextCache:
    """The texts of one shard."""

    file: FileStamp
    id_type: np.dtype
    single: bool
    """Every pair has one caption, so no list of first captions is kept."""
    firsts_offset: int
    entries_offset: int
    texts_offset: int

    def read(self, place: int, number: int) -> bytes:
        """The packed pieces of a caption.

        Args:
            place: of the pair in the shard.
            number: which of its captions.

        Raises:
            ChangedFileError: the file is damaged.
        """
        caption = (
            place if self.single else number + int.from_bytes(self._at(self.firsts_offset + 4 * place, 4), "little")
        )
        entry = self._at(self.entries_offset + _ENTRY.itemsize * caption, 2 * _ENTRY.itemsize)
        start, crc, stop, _ = struct.unpack("<4I", entry)
        packed = self._at(self.texts_offset + start, stop - start) if start <= stop else b""
        if start > stop or zlib.crc32(packed) != crc:
            raise ChangedFileError(f"{self.file.path} is damaged: delete it and start again.")
        return packed

    def _at(self, offset: int, size: int) -> bytes:
        return read_at(self.file, offset, size)


def unpack_texts(packed: Sequence[bytes], id_type: np.dtype) -> tuple[Ragged, UInt8[np.ndarray, " values"]]:
    """Ids and classes of the pieces of captions that `TextCache.read` gave."""
    # n ids and a byte for each four classes: the length determines n.
    counts = np.array([4 * len(text) // (4 * id_type.itemsize + 1) for text in packed], np.int64)
    sizes = (counts * id_type.itemsize).tolist()
    ids = np.frombuffer(b"".join(text[:size] for text, size in zip(packed, sizes, strict=True)), id_type)
    fours = np.frombuffer(b"".join(text[size:] for text, size in zip(packed, sizes, strict=True)), np.uint8)
    classes = (fours[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    return Ragged(ids.astype(np.int32), counts), Ragged(classes.reshape(-1), _up_to_four(counts)).cut(counts).values


def open_text_cache(index: ShardIndex, rules: TextRules) -> TextCache | None:
    """The kept texts of a shard; None where there are none that fit the shard's captions and the rules."""
    try:
        file = stamp_file(text_cache_path(index, rules), replaceable=True)
        magic, size, checksum = _PREFIX.unpack(read_at(file, 0, _PREFIX.size))
        if magic != _MAGIC or size > min(_LARGEST_HEADER, file.size):
            return None
        head = read_at(file, _PREFIX.size, size)
    except (OSError, ChangedFileError):
        return None
    if zlib.crc32(head) != checksum:
        return None
    header = json.loads(head)
    start = _PREFIX.size + size
    if (header["key"], header["checksum"], header["count"]) != (rules.key, index.header["checksum"], index.count):
        return None
    if start + header["end"] != file.size:
        return None
    offsets = (start + header[name] for name in ("firsts", "entries", "texts"))
    return TextCache(file, rules.id_type, header["single"], *offsets)


def build_text_cache(index: ShardIndex, rules: TextRules) -> int:
    """Split all captions of a shard and keep them beside its index; returns the bytes written.

    Raises:
        OSError: the file cannot be written.
        ValueError: the texts of the shard take 4 GiB or more.
    """
    captions = [index.pair(place).captions for place in range(index.count)]
    numbers = np.array([len(texts) for texts in captions], np.int64)
    flat = [text for texts in captions for text in texts]
    packed: list[bytes] = []
    for start in range(0, len(flat), _CAPTIONS_AT_ONCE):
        packed += _pack_texts(flat[start : start + _CAPTIONS_AT_ONCE], rules)
    entries = np.zeros(len(packed) + 1, _ENTRY)
    ends = np.cumsum([len(text) for text in packed], dtype=np.int64)
    if len(packed) and ends[-1] > _MOST_BYTES:
        raise ValueError(
            f"The tokens of {index.shard.path} take {ends[-1]} bytes; split it, a file holds 4 GiB of them."
        )
    entries["start"][1:] = ends
    entries["crc"][:-1] = [zlib.crc32(text) for text in packed]
    single = bool((numbers == 1).all())
    firsts = b"" if single else (np.cumsum(numbers) - numbers).astype("<u4").tobytes()
    body = b"".join([firsts, entries.tobytes(), *packed])
    header = {
        "key": rules.key,
        "checksum": index.header["checksum"],
        "count": index.count,
        "single": single,
        "firsts": 0,
        "entries": len(firsts),
        "texts": len(firsts) + entries.nbytes,
        "end": len(body),
    }
    head = json.dumps(header).encode()
    content = b"".join([_PREFIX.pack(_MAGIC, len(head), zlib.crc32(head)), head, body])
    write_whole(text_cache_path(index, rules), content)
    return len(content)


def text_cache_path(index: ShardIndex, rules: TextRules) -> Path:
    """Beside the index file, whose name tells the shard's state; it goes when the index is built anew."""
    return index.beside(f".{rules.key}.text")


def _pack_texts(captions: Sequence[str], rules: TextRules) -> list[bytes]:
    pieces = rules.tokenizer.split(captions)
    # Classes go by whole words, so they are found before a caption is cut.
    classes = Ragged(rules.classifier.classify(pieces), pieces.counts).cut(MOST_PIECES)
    pieces = pieces.cut(MOST_PIECES)
    padded = _up_to_four(pieces.counts)
    fours = np.zeros(padded.sum(), np.uint8)
    fours[
        np.arange(len(classes.values))
        + np.repeat(np.cumsum(padded - pieces.counts) - (padded - pieces.counts), pieces.counts)
    ] = classes.values
    fours = fours.reshape(-1, 4)
    packed = fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6
    ids = _slices(pieces.values.astype(rules.id_type), pieces.counts)
    return [a + b for a, b in zip(ids, _slices(packed, padded // 4), strict=True)]


def _slices(values: Shaped[np.ndarray, " values"], counts: Int64[np.ndarray, " rows"]) -> list[bytes]:
    raw, ends = values.tobytes(), np.cumsum(counts) * values.itemsize
    return [
        raw[start:end] for start, end in zip((ends - counts * values.itemsize).tolist(), ends.tolist(), strict=True)
    ]


def _up_to_four(counts: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    return -(-counts // 4) * 4
