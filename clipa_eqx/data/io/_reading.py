"""Bytes out of files by offset, from any number of threads, with few files open, wherever the files are."""

import functools
import os
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from typing import NamedTuple

from ._remote import open_remote, read_remote, RemoteFile, stat_remote


_MOST_OPEN_FILES = 256
_SCAN_BUFFER = 1 << 17


class FileStamp(NamedTuple):
    """A file as it was when it was looked at."""

    path: Path | RemoteFile
    size: int
    version: int
    """Time of its last change in ns; of a remote file, a hash of what its server says of its version."""
    replaceable: bool = False
    """Its name tells what it holds, so a copy that another process puts in its place is as good."""


class ChangedFileError(ValueError):
    """A file is not what it was when its index was read."""


def stamp_file(path: Path | RemoteFile, *, replaceable: bool = False) -> FileStamp:
    """Size and version of a file.

    Raises:
        OSError: there is no such file, or it cannot be reached.
    """
    if isinstance(path, RemoteFile):
        return FileStamp(path, *stat_remote(path))
    status = path.stat()
    return FileStamp(path, status.st_size, status.st_mtime_ns, replaceable)


def read_at(file: FileStamp, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset`.

    Nothing is memory-mapped: a map of a file that is cut short afterwards kills the process.

    Raises:
        ChangedFileError: the file was replaced or changed since it was stamped; of a remote file this is not seen.
        OSError: it cannot be read.
    """
    if isinstance(file.path, RemoteFile):
        return read_remote(file.path, file.version, offset, size)
    opened = _open(file)
    parts = []
    while size and (part := os.pread(opened.descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    if size:
        raise ChangedFileError(f"{file.path} became shorter while it was being read.")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_in_order(file: FileStamp) -> BufferedIOBase:
    """Open a file to be read from its start on, with a large buffer.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(file.path, RemoteFile):
        return open_remote(file.path, file.size)
    return BufferedReader(FileIO(file.path), _SCAN_BUFFER)


class _OpenFile:
    """A descriptor that closes once nobody uses it, so that one thread may drop it while another one reads."""

    def __init__(self, file: FileStamp) -> None:
        self.descriptor = os.open(str(file.path), os.O_RDONLY)
        status = os.fstat(self.descriptor)
        if not file.replaceable and (status.st_size, status.st_mtime_ns) != (file.size, file.version):
            raise ChangedFileError(
                f"{file.path} changed after its index was read: start again, and leave the data as it is during a run."
            )

    def __del__(self) -> None:
        # Opening may have failed before there was a descriptor.
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(maxsize=_MOST_OPEN_FILES)
def _open(file: FileStamp) -> _OpenFile:
    return _OpenFile(file)
