"""Image files, tars and a small tokenizer for the tests of reading data."""

import io
import tarfile

import google_crc32c
import numpy as np
import pyarrow.parquet
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from pyarrow import ipc

from clipa_eqx.data.formats._example import write_example


def picture(seed=0, width=48, height=40, cell=8):
    """A picture of soft blobs, different for each seed."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (max(1, height // cell), max(1, width // cell), 3)).astype(np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, form="JPEG", **options):
    """An image file."""
    file = io.BytesIO()
    image.save(file, form, **({"quality": 92} if form == "JPEG" else {}) | options)
    return file.getvalue()


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    """Write (name, bytes) members; a fractional time makes PAX headers as webdataset's writer does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1700000000.25 if form == tarfile.PAX_FORMAT else 1700000000
            tar.addfile(info, io.BytesIO(data))
    return path


def pair_members(count, first=0, image=None):
    """Members of `count` pairs as img2dataset writes them; captions number the pairs."""
    for number in range(first, first + count):
        yield f"{number:09d}.jpg", encode(picture(number)) if image is None else image
        yield f"{number:09d}.json", f'{{"caption": "other {number}"}}'.encode()
        yield f"{number:09d}.txt", f"caption {number}".encode()


class NumberTexts:
    """Reads a caption `caption 12` as the token 12 in the first slot, so that tests see which pair a row is."""

    def read(self, captions, length):
        tokens = np.zeros((len(captions), length), np.int32)
        tokens[:, 0] = [int(caption.text.split()[1]) for caption in captions]
        return tokens, (tokens % 4).astype(np.uint8)


def write_examples(path, rows):
    """Write rows as a TFRecord file of tf.train.Example."""
    with path.open("wb") as file:
        for row in rows:
            record, size = write_example(row), len(write_example(row)).to_bytes(8, "little")
            file.write(size + _masked_crc(size) + record + _masked_crc(record))
    return path


def _masked_crc(data):
    crc = google_crc32c.value(data)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def write_array_record(path, rows):
    """Write rows as an ArrayRecord file of tf.train.Example."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(write_example(row))
    writer.close()
    return path


def write_parquet(path, rows, row_group_size=3):
    """Write rows as Parquet with small row groups."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=row_group_size)
    return path


def write_arrow(path, rows, form=ipc.new_stream, batch_size=3, **options):
    """Write rows as an Arrow stream, as `datasets` saves them, in small batches."""
    table = pyarrow.Table.from_pylist(list(rows))
    with form(str(path), table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=batch_size)
    return path
