"""Image files, tars and a small tokenizer for the tests of reading data."""

import io
import tarfile

import numpy as np
from PIL import Image


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
