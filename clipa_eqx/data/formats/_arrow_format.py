"""Arrow files with images inside, as `datasets` saves them to disk."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..io._reading import FileStamp, read_at
from ._arrow_files import faults, image_files, import_pyarrow, scan_batch, ShardFile
from ._fields import FieldError, PairFields
from ._format import ScannedPair


_FILE_MAGIC = b"ARROW1\0\0"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of a stream that is whole."""


class _ArrowError(ValueError):
    """The file cannot be read on from here; its message is the reason under which the loss is counted."""


@dataclass(frozen=True)
class ArrowFormat:
    """Record batches with an image and its captions, as a stream or a file, not compressed.

    Images lie in such a file as they are, so they are read by offset, as fast as out of a tar.
    """

    fields: PairFields = field(default_factory=PairFields)

    @property
    def name(self) -> str:
        """The fields decide what a pair is."""
        return f"arrow{self.fields.suffix}"

    @property
    def needs(self) -> str:
        """A column of images and one of texts."""
        return "uncompressed Arrow files with a column of images, as bytes or {bytes, path}, and one of captions"

    def scan(self, shard: FileStamp, skipped: Counter[str]) -> Iterator[ScannedPair]:
        """Every row of the batches that are whole."""
        import_pyarrow()
        try:
            yield from self._scan(shard, skipped)
        except (FieldError, _ArrowError) as error:
            skipped[str(error)] += 1
        except faults():
            skipped["damaged Arrow file"] += 1

    def read_image(self, shard: FileStamp, place: int, size: int) -> bytes:
        """The bytes of the image."""
        return read_at(shard, place, size)

    def _scan(self, shard: FileStamp, skipped: Counter[str]) -> Iterator[ScannedPair]:
        first, found = 0, None
        for batch, body, offset in _batches(shard):
            if found is None:
                found = self.fields.find(batch.schema.names)
            places = _places(image_files(batch.column(found.image)), body, offset)
            yield from scan_batch(batch, found, first, lambda row, places=places: int(places[row]), skipped)
            first += len(batch)


def _batches(shard: FileStamp) -> Iterator[tuple[Any, Any, int]]:
    """Each record batch with the buffer of its body and that buffer's offset in the file."""
    from pyarrow import ipc, PythonFile

    file = ShardFile(shard)
    # The file form is the stream form between a mark and a table of contents.
    if file.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
        file.seek(0)
    messages = ipc.MessageReader.open_stream(PythonFile(file, mode="r"))
    schema = None
    while (message := next(messages, None)) is not None:
        if message.type == "schema":
            schema = ipc.read_schema(message)
        elif message.type != "record batch" or schema is None:
            raise _ArrowError(f"Arrow message of kind {message.type}, which is not read: save it without dictionaries")
        else:
            batch = ipc.read_record_batch(message, schema)
            batch.validate(full=True)
            yield batch, message.body, file.tell() - message.body.size
    if schema is None:
        raise _ArrowError("not an Arrow file" if shard.size else "empty Arrow file")
    if read_at(shard, file.tell() - len(_END), len(_END)) != _END:
        raise _ArrowError("truncated Arrow file")


def _places(images: Any, body: Any, offset: int) -> np.ndarray:
    """Where in the file the image of each row begins."""
    _, offsets, data = images.buffers()
    if data is None or not data.size:
        return np.zeros(len(images), np.int64)
    if not 0 <= data.address - body.address <= body.size - data.size:
        raise _ArrowError("compressed Arrow file: save it without compression")
    wide = import_pyarrow().types.is_large_binary(images.type)
    starts = np.frombuffer(offsets, np.int64 if wide else np.int32)[images.offset :][: len(images)]
    return starts.astype(np.int64) + (data.address - body.address + offset)
