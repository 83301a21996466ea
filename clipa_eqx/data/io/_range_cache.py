"""Ranges of remote files kept on a local disk, up to a size in all."""

import contextlib
import functools
import hashlib
import os
import threading
from collections import defaultdict
from pathlib import Path

from ...config import RemoteConfig
from ._writing import user_cache, write_whole


_PARTS = 64
"""Folders that share the size; each is looked through by itself."""
_LOOKS = 32
"""A folder is looked through whenever a process wrote this part of its share."""


class RangeCache:
    """Ranges of bytes by file, version and place. Any number of threads and processes use one folder.

    Each range is a file that appears whole. When a folder is full its oldest ranges go: an epoch reads every range
    once, so the time of the last use says nothing that the time of writing does not. Other processes may have written
    in the meantime, each up to a 32nd of the whole size.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Use a folder.

        Args:
            folder: made when something is kept.
            most_bytes: in all; 0 keeps nothing.
        """
        self._folder, self._share = folder, most_bytes // _PARTS
        self._written: defaultdict[int, int] = defaultdict(lambda: self._share)
        self._lock = threading.Lock()

    def get(self, name: str, offset: int, size: int) -> bytes | None:
        """A range, if it is kept."""
        try:
            content = self._path(name, offset, size)[1].read_bytes()
        except OSError:
            return None
        return content if len(content) == size else None

    def put(self, name: str, offset: int, content: bytes) -> None:
        """Keep a range; a full disk or a folder that cannot be written keeps nothing."""
        if len(content) > self._share:
            return
        part, path = self._path(name, offset, len(content))
        with contextlib.suppress(OSError):
            with self._lock:
                self._written[part] += len(content)
                look = self._written[part] >= self._share // _LOOKS
                if look:
                    self._written[part] = 0
            if look:
                _trim(path.parent, self._share - self._share // _LOOKS - len(content))
            write_whole(path, content)

    def _path(self, name: str, offset: int, size: int) -> tuple[int, Path]:
        digest = hashlib.sha256(f"{name}\0{offset}\0{size}".encode()).hexdigest()
        part = int(digest[:8], 16) % _PARTS
        return part, self._folder / f"{part:02d}" / digest[8:40]


@functools.cache
def range_cache(config: RemoteConfig) -> RangeCache:
    """The cache of this process."""
    folder = Path(config.cache).expanduser() if config.cache else user_cache() / "remote"
    return RangeCache(folder, int(config.cache_gib * (1 << 30)))


def _trim(folder: Path, most_bytes: int) -> None:
    """Remove the oldest files until at most so many bytes are left."""
    found: list[tuple[int, int, str]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
    left = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if left <= most_bytes:
            return
        Path(path).unlink(missing_ok=True)
        left -= size
