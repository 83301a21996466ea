"""Tar shards of one folder, the same bytes whenever the same files go in."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image


_QUALITY = 92


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a webdataset tar.

    Args:
        path: the tar to write; its folder exists.
        samples: key of each sample, and its files by extension.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples:
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def encode_jpeg(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A picture as JPEG, its colours at full resolution, for the objects of small pictures are few pixels wide."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
