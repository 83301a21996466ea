"""Many shards as one sequence."""

import bisect
import glob
import hashlib
import itertools
import operator
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...config import RemoteConfig
from .._pair import Pair
from ..formats._format import ShardFormat
from ..io._remote import list_remote, RemoteFile
from ._index import IndexedPair, load_indexes, open_shard_index, ShardIndex


_THREADS = 8
_MANY = 100
"""Shards without an index whose reading is worth a hint."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardPairs:
    """The pairs of some shards of one format, by index: shard after shard, in each in the shard's own order."""

    def __init__(self, shards: Sequence[Path | RemoteFile], format: ShardFormat) -> None:
        """Open shards, and index those that have no index yet.

        Args:
            shards: in the order in which their pairs are numbered.
            format: of all of them.

        Raises:
            FileNotFoundError: a shard is not there.
            ValueError: the shards hold no pair.
        """
        self.shards = _open_indexes(shards, format)
        self._ends = list(itertools.accumulate(shard.count for shard in self.shards))
        counts: Counter[str] = Counter()
        # Over names of shards, names and places of images, and captions; not over the pixels, nor where shards lie.
        digest = hashlib.sha256()
        for shard in self.shards:
            counts.update(shard.header["skipped"])
            digest.update(f"{shard.shard.path.name}\0{shard.shard.size}\0{shard.header['checksum']}\n".encode())
        self.fingerprint = digest.hexdigest()[:32]
        self.skipped = dict(sorted(counts.items()))
        if not len(self):
            raise ValueError(
                f"{shards[0]}{f' and {len(shards) - 1} more shards hold' if len(shards) > 1 else ' holds'} no pair "
                f"({describe_counts(self.skipped)}); needed are {format.needs}."
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Pair:
        shard, pair = self._find(index)
        return Pair(_key(shard, pair), shard.image(pair), pair.captions)

    def locate(self, index: int) -> tuple[int, int]:
        """In which shard a pair is, and where in it."""
        index = check_index(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number] - self.shards[number].count)

    def key(self, index: int) -> str:
        """Shard and name in it."""
        return _key(*self._find(index))

    def image(self, index: int) -> bytes:
        """The image file alone."""
        shard, pair = self._find(index)
        return shard.image(pair)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions alone."""
        return self._find(index)[1].captions

    def _find(self, index: int) -> tuple[ShardIndex, IndexedPair]:
        number, place = self.locate(index)
        shard = self.shards[number]
        return shard, shard.pair(place)


def _open_indexes(shards: Sequence[Path | RemoteFile], format: ShardFormat) -> list[ShardIndex]:
    found = load_indexes(shards, format)
    missing = sum(index is None for index in found)
    if missing >= _MANY:
        warnings.warn(
            f"{missing} of {len(shards)} shards have no index yet; they are read now. `clipa data index` reads them "
            "beforehand, with several processes or machines, and can be stopped and continued.",
            stacklevel=3,
        )
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda shard, index: index or open_shard_index(shard, format), shards, found))


def _key(shard: ShardIndex, pair: IndexedPair) -> str:
    return f"{shard.shard.path.name}/{pair.key}"


def check_index(index: int, length: int) -> int:
    """An index into a sequence, counted from the start.

    Raises:
        IndexError: it lies outside.
    """
    index = operator.index(index)
    if not -length <= index < length:
        raise IndexError(f"index {index} lies outside a sequence of {length}.")
    return index + length if index < 0 else index


def describe_counts(counts: dict[str, int]) -> str:
    """Reasons with their counts, for a message."""
    return "; ".join(f"{reason}: {count}" for reason, count in counts.items()) or "nothing was found"


def find_shards(path: str, pattern: str = "*.tar") -> list[Path]:
    """Shards at a path: a shard, a folder of them, a glob, or a name with ranges such as `{00000..00010}`.

    Args:
        path: where they are.
        pattern: of the names of those in a folder.

    Raises:
        FileNotFoundError: there is none, or one of a range is missing.
    """
    if _RANGE.search(path):
        shards = [Path(name) for name in _expand_ranges(path)]
        missing = [shard for shard in shards if not shard.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(shards)} shards of {path} are not there, the first is {missing[0]}."
            )
        return shards
    if Path(path).is_file():
        return [Path(path)]
    pattern = str(Path(glob.escape(path)) / pattern) if Path(path).is_dir() else path
    shards = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    if not shards:
        raise FileNotFoundError(f"There is no shard at {path}.")
    return shards


def find_remote_shards(url: str, pattern: str, config: RemoteConfig) -> list[RemoteFile]:
    """Shards at an address: a shard, a folder of them in a bucket, a glob, or a name with ranges.

    Args:
        url: where they are.
        pattern: of the names of those in a folder.
        config: how they are read.

    Raises:
        FileNotFoundError: there is none. One of a range that is missing is found when it is opened.
        ValueError: a glob or folder of a server that cannot list files.
    """
    if _RANGE.search(url):
        return [RemoteFile(name, config) for name in _expand_ranges(url)]
    name = RemoteFile(url, config).name
    if name and "*" not in url and Path(name).match(pattern):
        return [RemoteFile(url, config)]
    shards = list_remote(url if "*" in url else f"{url.rstrip('/')}/{pattern}", config)
    if not shards:
        raise FileNotFoundError(f"There is no shard at {url}.")
    return shards


def _expand_ranges(path: str) -> list[str]:
    found = _RANGE.search(path)
    if found is None:
        return [path]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [
        whole for number in numbers for whole in _expand_ranges(path[: found.start()] + number + path[found.end() :])
    ]
