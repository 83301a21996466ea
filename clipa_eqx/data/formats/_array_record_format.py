"""ArrayRecord files of `tf.train.Example`, as TFDS and `clipa data convert` write them."""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..io._reading import ChangedFileError, FileStamp, stamp_file
from ._example import read_example
from ._fields import PairFields
from ._format import ScannedPair
from ._tfrecord_format import scan_example


_MOST_OPEN_READERS = 64
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclass(frozen=True)
class ArrayRecordFormat:
    """Records as in a TFRecord file, found by their numbers; read fast where each is a group of its own."""

    fields: PairFields = field(default_factory=PairFields)

    @property
    def name(self) -> str:
        """The fields decide what a pair is."""
        return f"array-record{self.fields.suffix}"

    @property
    def needs(self) -> str:
        """An image and a text in one record."""
        return "ArrayRecord files of tf.train.Example with features such as jpg and txt, or image and caption"

    def scan(self, shard: FileStamp, skipped: Counter[str]) -> Iterator[ScannedPair]:
        """Every record whose checksum is right; of a file that is cut short nothing can be read."""
        if not shard.size:
            skipped["empty ArrayRecord file"] += 1
            return
        reader = _open(shard)
        if not reader.ok():
            skipped["damaged ArrayRecord file"] += 1
            return
        for number in range(reader.num_records()):
            try:
                (record,) = reader.read([number])
            except RuntimeError:
                skipped["damaged record"] += 1
                continue
            found = scan_example(record, self.fields, 0, number, skipped)
            if found is not None:
                yield ScannedPair(**{**vars(found), "place": number})

    def read_image(self, shard: FileStamp, place: int, size: int) -> bytes:
        """The image of a record."""
        try:
            (record,) = _open(shard).read([place])
        except RuntimeError as error:
            raise ChangedFileError(f"{shard.path} cannot be read any more: {error}") from error
        row = read_example(record)
        return row[self.fields.find(row).image][0]


@functools.lru_cache(maxsize=_MOST_OPEN_READERS)
def _open(shard: FileStamp) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise ImportError("ArrayRecord files need the package array_record, which Windows does not have.") from error

    if stamp_file(shard.path).version != shard.version:
        raise ChangedFileError(f"{shard.path} changed after its index was read: start again.")
    return ArrayRecordReader(str(shard.path), _OPTIONS)
