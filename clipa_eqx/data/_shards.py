"""Many tar shards as one sequence."""

import bisect
import glob
import hashlib
import itertools
import operator
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ._index import IndexedPair, open_shard_index, ShardIndex
from ._pair import Pair
from ._pairing import CAPTIONS, TextKind


_INDEX_THREADS = 8
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class TarPairs:
    """The pairs of image and text of some tars, by index: shard after shard, in each in the order of the tar."""

    def __init__(self, shards: Sequence[Path], kind: TextKind = CAPTIONS) -> None:
        """Open tars, and index those that have no index yet.

        Args:
            shards: the tars, in the order in which their pairs are numbered.
            kind: the texts that stand beside the images.

        Raises:
            FileNotFoundError: a tar is not there.
            ValueError: the tars hold no pair.
        """
        with ThreadPoolExecutor(_INDEX_THREADS) as threads:
            self._shards: list[ShardIndex] = list(threads.map(lambda shard: open_shard_index(shard, kind), shards))
        self._ends = list(itertools.accumulate(shard.count for shard in self._shards))
        counts: Counter[str] = Counter()
        # Over names of tars, names and places of images, and texts; not over the pixels, nor where the tars lie.
        digest = hashlib.sha256()
        for shard in self._shards:
            counts.update(shard.skipped)
            digest.update(f"{shard.shard.path.name}\0{shard.shard.size}\0{shard.checksum}\n".encode())
        self.fingerprint = digest.hexdigest()[:32]
        self.skipped = dict(sorted(counts.items()))
        if not len(self):
            raise ValueError(
                f"{shards[0]}{f' and {len(shards) - 1} more tars hold' if len(shards) > 1 else ' holds'} no image with "
                f"a {kind.name} of the same name ({describe_counts(self.skipped)}); needed are members such as "
                f"000.jpg and 000.{kind.extensions[0].decode()}."
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Pair:
        shard, pair = self._locate(index)
        return Pair(_key(shard, pair), shard.read_image(pair), shard.read_text(pair))

    def key(self, index: int) -> str:
        """Tar and name in it."""
        return _key(*self._locate(index))

    def image(self, index: int) -> bytes:
        """The image file alone."""
        shard, pair = self._locate(index)
        return shard.read_image(pair)

    def text(self, index: int) -> str:
        """The text alone."""
        shard, pair = self._locate(index)
        return shard.read_text(pair)

    def _locate(self, index: int) -> tuple[ShardIndex, IndexedPair]:
        index = check_index(index, len(self))
        place = bisect.bisect_right(self._ends, index)
        shard = self._shards[place]
        return shard, shard.locate(index - (self._ends[place] - shard.count))


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


def find_shards(path: str) -> list[Path]:
    """Tars at a path: a tar, a folder of tars, a glob, or a name with ranges such as `{00000..00010}`.

    Raises:
        FileNotFoundError: there is none, or one of a range is missing.
    """
    if _RANGE.search(path):
        shards = [Path(name) for name in _expand_ranges(path)]
        missing = [shard for shard in shards if not shard.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(shards)} tars of {path} are not there, the first is {missing[0]}."
            )
        return shards
    if Path(path).is_file():
        return [Path(path)]
    pattern = str(Path(glob.escape(path)) / "*.tar") if Path(path).is_dir() else path
    shards = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    if not shards:
        raise FileNotFoundError(f"There is no tar at {path}.")
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
