"""Files at gs://, s3://, http:// and https://: what they are, bytes out of them by offset, and lists of them."""

import functools
import hashlib
import io
import posixpath
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ...config import RemoteConfig
from ._range_cache import range_cache


_URL = re.compile(r"(gs|s3|https?)://.+", re.DOTALL)
_FIRST_PAUSE_S = 0.5
_SCAN_BYTES = 1 << 23

_T = TypeVar("_T")


class RemoteError(OSError):
    """A file behind a network cannot be read, however often it was tried."""


@dataclass(frozen=True, order=True)
class RemoteFile:
    """The address of a file behind a network, and how it is read."""

    url: str
    config: RemoteConfig

    @property
    def name(self) -> str:
        """Its last part."""
        return posixpath.basename(self.url.partition("?")[0])

    @property
    def folder(self) -> str:
        """What stands before its name."""
        return posixpath.dirname(self.url.partition("?")[0])

    def __str__(self) -> str:
        return self.url


def is_url(path: str) -> bool:
    """Whether a path leads over a network."""
    return _URL.fullmatch(path) is not None


def stat_remote(file: RemoteFile) -> tuple[int, int]:
    """Size of a file, and a number that changes when the file does.

    Raises:
        FileNotFoundError: there is no such file.
        RemoteError: the server does not answer, or does not tell the size.
    """
    info = _persist(file, lambda system, timeout: system.info(file.url, timeout=timeout))
    if info.get("type") == "directory":
        raise FileNotFoundError(f"{file} is a folder.")
    if info.get("size") is None:
        raise RemoteError(f"The server does not tell the size of {file}: copy it to a disk or bucket.")
    names = ("ETag", "etag", "Content-MD5", "Last-Modified", "LastModified", "updated")
    version = next((str(info[name]) for name in names if info.get(name)), "")
    return int(info["size"]), int.from_bytes(hashlib.sha256(version.encode()).digest()[:7], "big")


def read_remote(file: RemoteFile, version: int, offset: int, size: int) -> bytes:
    """Bytes of a file, from the local cache where they are kept.

    Raises:
        RemoteError: the server does not send them.
    """
    cache = range_cache(file.config)
    name = f"{file.url}\0{version:x}"
    content = cache.get(name, offset, size)
    if content is None:
        content = fetch_remote(file, offset, size)
        cache.put(name, offset, content)
    return content


def fetch_remote(file: RemoteFile, offset: int, size: int) -> bytes:
    """Bytes of a file, from its server.

    Raises:
        RemoteError: the server does not send them.
    """
    if not size:
        return b""

    def fetch(system: Any, timeout: float) -> bytes:
        content = system.cat_file(file.url, start=offset, end=offset + size, timeout=timeout)
        if len(content) > size:
            raise RemoteError(
                f"The server of {file} sends the whole file when asked for a part of it, so nothing can be read at "
                "random: copy the shards to a disk or bucket, or use a server that serves ranges."
            )
        if len(content) < size:
            raise ConnectionError(f"{len(content)} of {size} bytes came")
        return content

    return _persist(file, fetch)


def open_remote(file: RemoteFile, size: int) -> io.BufferedIOBase:
    """Open a file to be read from its start on, in large requests."""
    return io.BufferedReader(_RemoteRaw(file, size), _SCAN_BYTES)


def list_remote(pattern: str, config: RemoteConfig) -> list[RemoteFile]:
    """Files that a glob matches, sorted.

    Raises:
        ValueError: the server cannot list files.
        RemoteError: the server does not answer.
    """
    if pattern.startswith("http"):
        raise ValueError(
            f"{pattern}: files behind {pattern.partition(':')[0]} cannot be listed; name them by a range such as "
            "https://example.org/{00000..00127}.tar."
        )
    scheme = pattern.partition("://")[0]
    names = _persist(RemoteFile(pattern, config), lambda system, timeout: system.glob(pattern, timeout=timeout))
    return sorted(RemoteFile(f"{scheme}://{name}", config) for name in names)


class _RemoteRaw(io.RawIOBase):
    """Each read is one request."""

    def __init__(self, file: RemoteFile, size: int) -> None:
        self._file, self._size, self._position = file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._position))
        buffer[:size] = fetch_remote(self._file, self._position, size)
        self._position += size
        return size


def _persist(file: RemoteFile, request: Callable[[Any, float], _T]) -> _T:
    """Ask again, with growing pauses, until there is an answer or the attempts are used up."""
    config = file.config
    system = _file_system(file.url.partition("://")[0])
    attempt = 0
    while True:
        attempt += 1
        try:
            return request(system, config.timeout_s)
        except RemoteError:
            raise
        except Exception as error:  # each kind of server brings exceptions of its own
            if _is_missing(error):
                raise FileNotFoundError(f"There is no {file}.") from error
            if _is_refusal(error) or attempt == config.attempts:
                cause = error.__cause__ or error
                raise RemoteError(
                    f"{file} cannot be read: {type(cause).__name__} {' '.join(str(cause).split())} ({attempt} of "
                    f"{config.attempts} attempts, {config.timeout_s:g} s each). Check address, network and "
                    "credentials; data.remote sets attempts and time."
                ) from error
        time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))


def _status(error: BaseException) -> int | None:
    """HTTP status of a failed request."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _is_missing(error: Exception) -> bool:
    # fsspec says "not found" of an HTTP address for whatever went wrong, and keeps the reason as the cause.
    if not isinstance(error, FileNotFoundError):
        return False
    return error.__cause__ is None or _status(error.__cause__) in (404, 410)


def _is_refusal(error: Exception) -> bool:
    """Whether asking again would give the same answer."""
    status = _status(error.__cause__ or error)
    return isinstance(error, PermissionError) or (
        status is not None and 400 <= status < 500 and status not in (408, 425, 429)
    )


@functools.cache
def _file_system(scheme: str) -> Any:
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise ImportError(f'Files at {scheme}:// need more packages: pip install "clipa_eqx[remote]".') from error
