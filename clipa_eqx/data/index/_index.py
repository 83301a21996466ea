"""The index of a shard: its pairs with their captions, sizes and metadata. Built once, kept in a file, read by offset.

Only the header of an index file is read when a set is opened, and nothing else is held: 4e8 pairs in shards of ten
thousand cost a few kilobytes per shard.
"""

import glob
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from ..formats._format import ShardFormat
from ..io._reading import ChangedFileError, FileStamp, read_at, stamp_file
from ..io._remote import RemoteFile
from ..io._writing import user_cache, write_whole
from ._index_file import COLUMN_TYPES, ColumnKind, IndexHeader, pack_index, read_header, RECORD, record_crc


_THREADS = 8
_REMOTE_THREADS = 64
"""Where most of the time is spent waiting for answers."""


class IndexedPair(NamedTuple):
    """What the index of a shard says of one pair."""

    key: str
    captions: tuple[str, ...]
    place: int
    """Where its image lies, as the shard's format counts."""
    size: int
    """Bytes of the image file."""


class IndexColumn(NamedTuple):
    """One value for each pair of a shard."""

    kind: ColumnKind
    values: Shaped[np.ndarray, " pairs"]
    words: tuple[str, ...]
    """What the values of a column of words stand for."""


@dataclass(frozen=True)
class ShardIndex:
    """The pairs of one shard, found through its index file."""

    shard: FileStamp
    format: ShardFormat
    file: FileStamp
    """The index file."""
    header: IndexHeader

    @property
    def count(self) -> int:
        """Pairs in the shard."""
        return self.header["count"]

    def pair(self, place: int) -> IndexedPair:
        """Read the entry of one pair.

        Raises:
            ChangedFileError: the index file is damaged.
        """
        raw = read_at(self.file, self.header["records_offset"] + place * RECORD.itemsize, RECORD.itemsize)
        record = np.frombuffer(raw, RECORD)[0]
        text_start = self.header["texts_offset"] + int(record["text_offset"])
        if text_start + int(record["text_size"]) > self.header["end"]:
            raise self._damage()
        text = read_at(self.file, text_start, int(record["text_size"]))
        if record_crc(raw, text) != int(record["crc"]):
            raise self._damage()
        key, *captions = json.loads(text)
        return IndexedPair(key, tuple(captions), int(record["place"]), int(record["size"]))

    def image(self, pair: IndexedPair) -> bytes:
        """The image file of a pair."""
        return self.format.read_image(self.shard, pair.place, pair.size)

    def column(self, name: str) -> IndexColumn | None:
        """A size, a score, a label or a hash for each pair; None if the shard has no such field.

        Raises:
            ChangedFileError: the index file is damaged.
        """
        column = self.header["columns"].get(name)
        if column is None:
            return None
        form = COLUMN_TYPES[column["kind"]]
        size = form.itemsize * self.count
        content = read_at(self.file, column["offset"], size + column["words"])
        if zlib.crc32(content) != column["crc"]:
            raise self._damage()
        words = tuple(json.loads(content[size:])) if column["kind"] == "word" else ()
        return IndexColumn(column["kind"], np.frombuffer(content, form, self.count), words)

    def beside(self, ending: str) -> Path:
        """Path of a file that belongs to the index, and goes when that is built anew."""
        return Path(f"{self.file.path}{ending}")

    def _damage(self) -> ChangedFileError:
        return ChangedFileError(f"The index {self.file.path} is damaged: delete it and start again.")


def load_indexes(shards: Sequence[Path | RemoteFile], format: ShardFormat) -> list[ShardIndex | None]:
    """Read the index of each shard; None for those that have none which fits the shard's size and time.

    Raises:
        OSError: a shard cannot be read.
    """
    remote = any(isinstance(shard, RemoteFile) for shard in shards)
    with ThreadPoolExecutor(_REMOTE_THREADS if remote else _THREADS) as threads:
        return list(threads.map(lambda shard: _load_index(stamp_file(shard), format), shards))


def open_shard_index(shard: Path | RemoteFile, format: ShardFormat) -> ShardIndex:
    """Read the index of a shard, or build and keep it when there is none that fits the shard's size and time.

    Index files are kept in a folder `.clipa_index` beside the shard; where that cannot be written, in the user's cache
    folder. They are replaced as a whole, so processes that build the same index at once do each other no harm.

    Raises:
        OSError: the shard cannot be read, or no index file can be written in either place.
    """
    stamp = stamp_file(shard)
    if (index := _load_index(stamp, format)) is not None:
        return index
    content = _build(stamp, format)
    failures: list[str] = []
    for path in _index_paths(stamp, format):
        try:
            _replace_index(path, content)
        except OSError as error:
            failures.append(str(error))
            continue
        index = _load(path, stamp, format)
        if index is None:
            raise OSError(f"{path} was written but cannot be read back.")
        return index
    raise OSError(
        f"The index of {shard} cannot be written ({'; '.join(failures)}): make one of these folders writable, or set "
        "XDG_CACHE_HOME to a folder that is."
    )


def _build(shard: FileStamp, format: ShardFormat) -> bytes:
    skipped: Counter[str] = Counter()
    pairs = list(format.scan(shard, skipped))
    return pack_index(shard, format.name, pairs, skipped)


def _index_paths(shard: FileStamp, format: ShardFormat) -> tuple[Path, ...]:
    """Beside the shard and in the user's cache folder; the name tells the shard's state, and so the content."""
    name = f"{shard.path.name}.{format.name}.{shard.size:x}-{shard.version:x}"
    if isinstance(shard.path, RemoteFile):
        digest = hashlib.sha256(shard.path.folder.encode()).hexdigest()[:16]
        return (user_cache() / "index" / digest / name,)
    folder = shard.path.absolute().parent
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return folder / ".clipa_index" / name, user_cache() / "index" / digest / name


def _replace_index(path: Path, content: bytes) -> None:
    """Write an index file as a whole, and remove those of earlier states of the shard."""
    write_whole(path, content)
    for other in path.parent.glob(f"{glob.escape(path.stem)}.*"):
        if other != path:
            other.unlink(missing_ok=True)


def _load_index(shard: FileStamp, format: ShardFormat) -> ShardIndex | None:
    found = (_load(path, shard, format) for path in _index_paths(shard, format))
    return next((index for index in found if index is not None), None)


def _load(path: Path, shard: FileStamp, format: ShardFormat) -> ShardIndex | None:
    """The index in a file; None when there is none, when it is damaged, or when it is of another state of the shard."""
    try:
        file = stamp_file(path, replaceable=True)
    except OSError:
        return None
    header = read_header(file)
    if header is None:
        return None
    if (header["format"], header["size"], header["shard_version"]) != (format.name, shard.size, shard.version):
        return None
    if header["end"] != file.size:
        return None
    return ShardIndex(shard, format, file, header)
