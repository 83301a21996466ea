"""Parquet files with images inside, as img2dataset and `datasets` write them."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..io._reading import ChangedFileError, FileStamp
from ._arrow_files import faults, image_files, import_pyarrow, scan_batch, ShardFile, useful_columns
from ._fields import FieldError, FoundFields, PairFields
from ._format import ScannedPair


_MOST_KEPT_BYTES = 256 << 20
"""Of decoded images, over all threads of a process."""
_MOST_KEPT_GROUPS = 64
_ROWS = 64
"""Decoded at once in a scan."""


@dataclass(frozen=True)
class ParquetFormat:
    """Rows with an image and its captions.

    A row is read with the whole row group that it lies in. Of images of 20 KB, each one of a shuffled epoch costs 1 to
    2 ms in groups of a hundred rows, as img2dataset and `datasets` write them, and 10 ms in groups of a thousand; out
    of a tar 0.1 ms. `clipa data convert` pays off soon.
    """

    fields: PairFields = field(default_factory=PairFields)

    @property
    def name(self) -> str:
        """The fields decide what a pair is."""
        return f"parquet{self.fields.suffix}"

    @property
    def needs(self) -> str:
        """A column of images and one of texts."""
        return "Parquet files with a column of images, as bytes or {bytes, path}, and one of captions"

    def scan(self, shard: FileStamp, skipped: Counter[str]) -> Iterator[ScannedPair]:
        """Every row that can be decoded; of a damaged row group the rows before the damage."""
        import_pyarrow()
        try:
            file = _open(shard)
            found = self.fields.find(file.schema_arrow.names)
            columns = useful_columns(file.schema_arrow, found)
        except FieldError as error:
            skipped[str(error)] += 1
            return
        except faults():
            skipped["damaged Parquet file" if shard.size else "empty Parquet file"] += 1
            return
        first, footer = 0, file.metadata
        if footer.num_rows != sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups)):
            skipped["damaged Parquet file"] += 1
        for group in range(footer.num_row_groups):
            try:
                yield from _scan_group(file, group, columns, found, first, skipped)
            except FieldError as error:
                skipped[str(error)] += 1
                return
            except faults():
                skipped["damaged Parquet row group"] += 1
            first += footer.row_group(group).num_rows

    def read_image(self, shard: FileStamp, place: int, size: int) -> bytes:
        """The image of a row, out of its row group."""
        group = _KEPT.get(shard, self.fields, place)
        image = group.images[place - group.first].as_py() or b""
        if len(image) != size:
            raise ChangedFileError(f"{shard.path} changed after its index was read: start again.")
        return image


def _open(shard: FileStamp) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(ShardFile(shard), page_checksum_verification=True)


def _scan_group(
    file: Any, group: int, columns: list[str], found: FoundFields, first: int, skipped: Counter[str]
) -> Iterator[ScannedPair]:
    end = first + file.metadata.row_group(group).num_rows
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False):
        batch.validate(full=True)
        yield from scan_batch(batch, found, first, first.__add__, skipped)
        first += len(batch)
    if first != end:
        raise ValueError(f"a row group ends at row {first} and not at {end}")


class _Group(NamedTuple):
    first: int
    """Number of its first row."""
    images: Any
    """A chunked array of them."""


class _KeptGroups:
    """The row groups read last, shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[FileStamp, PairFields, int], _Group] = OrderedDict()

    def get(self, shard: FileStamp, fields: PairFields, row: int) -> _Group:
        """The group that holds a row."""
        with self._lock:
            for key, group in reversed(self._groups.items()):
                if key[:2] == (shard, fields) and 0 <= row - group.first < len(group.images):
                    self._groups.move_to_end(key)
                    return group
        group = _read_group(shard, fields, row)
        with self._lock:
            self._groups[shard, fields, group.first] = group
            while len(self._groups) > 1 and (len(self._groups) > _MOST_KEPT_GROUPS or self._bytes() > _MOST_KEPT_BYTES):
                self._groups.popitem(last=False)
        return group

    def _bytes(self) -> int:
        return sum(group.images.nbytes for group in self._groups.values())


_KEPT = _KeptGroups()


def _read_group(shard: FileStamp, fields: PairFields, row: int) -> _Group:
    import_pyarrow()
    try:
        file = _open(shard)
        found = fields.find(file.schema_arrow.names)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < first + rows:
                (column,) = file.read_row_group(group, columns=[found.image], use_threads=False).columns
                return _Group(first, _combine(column))
            first += rows
    except faults() as error:
        raise ChangedFileError(f"{shard.path} cannot be read any more: {error}") from error
    raise ChangedFileError(f"{shard.path} has fewer rows than when it was indexed: start again.")


def _combine(column: Any) -> Any:
    pa = import_pyarrow()
    return pa.chunked_array([image_files(chunk) for chunk in column.chunks])
