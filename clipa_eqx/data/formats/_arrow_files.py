"""What Parquet and Arrow share: a shard as pyarrow reads it, and pairs out of its batches of rows."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TYPE_CHECKING

from ..io._reading import FileStamp, read_at
from ._fields import failure_of, FieldError, FoundFields
from ._format import ScannedPair


if TYPE_CHECKING:
    import pyarrow


class ShardFile(io.RawIOBase):
    """A shard as a file object, which any number of threads can have of their own."""

    def __init__(self, shard: FileStamp) -> None:
        super().__init__()
        self._shard, self._position = shard, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place, from the start, here, or the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._shard.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        left = max(0, self._shard.size - self._position)
        data = read_at(self._shard, self._position, left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data


def faults() -> tuple[type[Exception], ...]:
    """What pyarrow raises over damaged files."""
    # Decoders of damaged pages raise OSError; sizes that are wrong end in MemoryError, texts in UnicodeDecodeError.
    return (import_pyarrow().ArrowException, OSError, MemoryError, OverflowError, ValueError)


def import_pyarrow() -> Any:
    """The module pyarrow.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError('Parquet and Arrow files need an extra: pip install "clipa_eqx[parquet]".') from error
    return pyarrow


def useful_columns(schema: "pyarrow.Schema", found: FoundFields) -> list[str]:
    """Columns of which a pair is made: the image, its captions, numbers and texts; no lists of numbers, no blobs."""
    types = import_pyarrow().types
    kept = [found.image, *found.captions]
    for field in schema:
        plain = types.is_string(field.type) or types.is_large_string(field.type) or types.is_boolean(field.type)
        if (plain or types.is_integer(field.type) or types.is_floating(field.type)) and field.name not in kept:
            kept.append(field.name)
    return kept


def image_files(column: "pyarrow.Array") -> "pyarrow.Array":
    """The image files of a column: of bytes, or of structs {bytes, path} as `datasets` writes them.

    Raises:
        FieldError: it holds something else.
    """
    pa = import_pyarrow()
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        column, kind = column.storage, column.storage.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        # A struct that is missing makes its bytes missing too.
        column = column.flatten()[kind.get_field_index("bytes")]
        kind = column.type
    if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise FieldError(f"images of type {str(kind)[:40]} and not bytes")
    return column


def scan_batch(
    batch: "pyarrow.RecordBatch",
    found: FoundFields,
    first: int,
    place_of: Callable[[int], int],
    skipped: Counter[str],
) -> Iterator[ScannedPair]:
    """The pairs of some rows.

    Args:
        batch: the rows.
        found: which columns to read.
        first: number of the first row.
        place_of: the place of the image of a row of this batch.
        skipped: what cannot be used is counted here.

    Raises:
        FieldError: the images are no bytes.
        Exception: one of `faults()`, where the batch is damaged.
    """
    images = image_files(batch.column(found.image))
    names = [name for name in useful_columns(batch.schema, found) if name != found.image]
    rows = batch.select(names).to_pylist()
    for number, row in enumerate(rows):
        image = images[number].as_py()
        if image is None and (failure := failure_of(row)):
            skipped[failure] += 1
            continue
        pair = found.scan_row(row, image or b"", place_of(number), first + number, skipped)
        if pair is not None:
            yield pair
