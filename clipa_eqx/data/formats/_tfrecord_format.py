"""TFRecord files of `tf.train.Example`, as img2dataset and TFDS write them, read without TensorFlow."""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase

from ..io._reading import FileStamp, open_in_order, read_at
from ._example import ExampleError, read_example
from ._fields import failure_of, FieldError, PairFields
from ._format import LARGEST_IMAGE, LARGEST_TEXT, ScannedPair
from ._img2dataset import count_failures


_HEAD = struct.Struct("<QI")  # length of the record, masked CRC-32C of the length
_TAIL = struct.Struct("<I")  # masked CRC-32C of the record
_MASK = 0xA282EAD8
_LARGEST_RECORD = LARGEST_IMAGE + LARGEST_TEXT
_GZIP = b"\x1f\x8b"


class TFRecordError(ValueError):
    """The file cannot be read on from here; its message is the reason under which the loss is counted."""


@dataclass(frozen=True)
class TFRecordFormat:
    """Records that are Examples with an image file, its captions and whatever else. The files are not compressed."""

    fields: PairFields = field(default_factory=PairFields)

    @property
    def name(self) -> str:
        """The fields decide what a pair is."""
        return f"tfrecord{self.fields.suffix}"

    @property
    def needs(self) -> str:
        """An image and a text in one record."""
        return "uncompressed TFRecords of tf.train.Example with features such as jpg and txt, or image and caption"

    def scan(self, shard: FileStamp, skipped: Counter[str]) -> Iterator[ScannedPair]:
        """Every whole record; a file that is cut short gives those before the cut."""
        count_failures(shard.path, skipped)
        with open_in_order(shard) as file:
            try:
                for number, (offset, record) in enumerate(_records(file, shard.size, skipped)):
                    found = scan_example(record, self.fields, offset, number, skipped)
                    if found is not None:
                        yield found
            except TFRecordError as error:
                skipped[str(error)] += 1

    def read_image(self, shard: FileStamp, place: int, size: int) -> bytes:
        """The bytes of the image, which lie in the record as they are."""
        return read_at(shard, place, size)


def scan_example(
    record: bytes, fields: PairFields, offset: int, number: int, skipped: Counter[str]
) -> ScannedPair | None:
    """The pair in a record that lies at an offset; None, and counted, if there is none."""
    try:
        row = read_example(record)
        found = fields.find(row)
    except (ExampleError, FieldError) as error:
        skipped[str(error)] += 1
        return None
    values = row.pop(found.image)
    image = values[0] if len(values) == 1 and isinstance(values[0], bytes) else b""
    if not image and (failure := failure_of(row)):
        skipped[failure] += 1
        return None
    # Wherever these bytes stand in the record, they are the image.
    return found.scan_row(row, image, offset + record.find(image), number, skipped)


def _records(file: BufferedIOBase, file_size: int, skipped: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each record whose checksum is right; one that is damaged is counted and passed over."""
    position = 0
    if not file_size:
        raise TFRecordError("empty TFRecord file")
    while position < file_size:
        head = file.read(_HEAD.size)
        if head.startswith(_GZIP) and position == 0:
            raise TFRecordError("compressed TFRecord file: unpack it with gunzip")
        if len(head) < _HEAD.size:
            raise TFRecordError("truncated TFRecord file")
        size, checksum = _HEAD.unpack(head)
        if _masked_crc(head[:8]) != checksum or size > _LARGEST_RECORD:
            raise TFRecordError("damaged TFRecord header" if position else "not a TFRecord file")
        if position + _HEAD.size + size + _TAIL.size > file_size:
            raise TFRecordError("truncated TFRecord file")
        record = file.read(size)
        (checksum,) = _TAIL.unpack(file.read(_TAIL.size))
        if _masked_crc(record) == checksum:
            yield position + _HEAD.size, record
        else:
            skipped["damaged record"] += 1
        position += _HEAD.size + size + _TAIL.size


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted, so that a checksum of data that holds checksums stays a good one."""
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError('TFRecord files need an extra: pip install "clipa_eqx[tfrecord]".') from error

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF
