"""Pairs left out by what the index says of them, without opening a picture."""

import contextlib
import dataclasses
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from ...config import Comparison, FilterConfig
from .._pair import Pair
from ..io._writing import user_cache, write_whole
from ._index import IndexColumn, ShardIndex
from ._index_file import hash_text
from ._shards import check_index, describe_counts, ShardPairs


_THREADS = 8
_KEPT_FROM = 1_000_000
"""Pairs of a set from which on the result of a filter is kept in a file; below, it takes less than a second."""
_HASHES_AT_ONCE = 1 << 22
_BLOCK_BYTES = 64

_Mask = Bool[np.ndarray, " pairs"]


class FilteredPairs:
    """The pairs of a set that pass a filter, in the order of the set.

    A bit for each pair of the set is held, and a count for each 512 of them. The result of filtering a large set is
    kept in the user's cache folder.
    """

    def __init__(self, pairs: ShardPairs, filter: FilterConfig) -> None:
        """Judge every pair.

        Args:
            pairs: the whole set.
            filter: what to leave out.

        Raises:
            ValueError: nothing is left, or no shard has a field that the filter names.
        """
        self._pairs = pairs
        _check_fields(pairs.shards, filter)
        self._bits, counts = _load_or_judge(pairs, filter)
        self._starts = _block_starts(self._bits)
        self.skipped = dict(sorted({**pairs.skipped, **counts}.items()))
        self.fingerprint = hashlib.sha256(pairs.fingerprint.encode() + self._bits.tobytes()).hexdigest()[:32]
        if not len(self):
            raise ValueError(f"The filter leaves none of {len(pairs)} pairs ({describe_counts(counts)}); loosen it.")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pair:
        return self._pairs[self.place(index)]

    @property
    def shards(self) -> Sequence[ShardIndex]:
        """The shards of the whole set."""
        return self._pairs.shards

    def locate(self, index: int) -> tuple[int, int]:
        """In which shard a pair is, and where in it."""
        return self._pairs.locate(self.place(index))

    def key(self, index: int) -> str:
        """Shard and name in it."""
        return self._pairs.key(self.place(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions alone."""
        return self._pairs.captions(self.place(index))

    def place(self, index: int) -> int:
        """Where a pair stands in the whole set."""
        index = check_index(index, len(self))
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        bits = np.unpackbits(self._bits[block * _BLOCK_BYTES : (block + 1) * _BLOCK_BYTES])
        return 8 * _BLOCK_BYTES * block + int(np.flatnonzero(bits)[index - int(self._starts[block])])


def _block_starts(bits: UInt8[np.ndarray, " bytes"]) -> np.ndarray:
    """Pairs that pass before each block, and in all."""
    blocks = np.arange(0, len(bits), _BLOCK_BYTES)
    return np.concatenate([[0], np.cumsum(np.add.reduceat(np.bitwise_count(bits), blocks, dtype=np.int64))])


def _check_fields(shards: Sequence[ShardIndex], filter: FilterConfig) -> None:
    """Raise unless each field that is named stands in some shard, in the form that is asked for."""
    for comparison in filter.comparisons:
        kinds = _kinds(shards, comparison.field)
        if "number" in kinds and comparison.number is None:
            raise ValueError(f"filter.where: {comparison} compares numbers with {comparison.value!r}.")
        if kinds - {"number"} and comparison.operator not in ("=", "!="):
            raise ValueError(
                f"filter.where: {comparison} orders by {comparison.field}, which holds words: use = or !=."
            )
    for name in filter.unique:
        if "number" in _kinds(shards, name):
            raise ValueError(f"filter.unique: {name} holds numbers, by which pairs cannot be told apart.")


def _kinds(shards: Sequence[ShardIndex], name: str) -> set[str]:
    kinds: set[str] = {columns[name]["kind"] for shard in shards if name in (columns := shard.header["columns"])}
    if not kinds:
        known = sorted({name for shard in shards for name in shard.header["columns"]})
        raise ValueError(f"The filter names {name!r}, which no shard has; there are {', '.join(known)}.")
    return kinds


def _load_or_judge(pairs: ShardPairs, filter: FilterConfig) -> tuple[UInt8[np.ndarray, " bytes"], dict[str, int]]:
    """A bit per pair and the counts of what is left out, from a file where they are kept."""
    path = user_cache() / "filter" / _digest(pairs, filter)
    size = -(-len(pairs) // 8)
    if (found := _load(path, size)) is not None:
        return found
    kept, counts = _judge(pairs.shards, filter)
    bits = np.packbits(kept)
    if len(pairs) >= _KEPT_FROM:
        head = json.dumps({"skipped": counts, "crc": zlib.crc32(bits.tobytes())}).encode()
        # Where there is no room for it, the next start judges again.
        with contextlib.suppress(OSError):
            write_whole(path, head + b"\n" + bits.tobytes())
    return bits, counts


def _digest(pairs: ShardPairs, filter: FilterConfig) -> str:
    """Of all that decides the result: the pairs, their columns, the filter."""
    digest = hashlib.sha256(pairs.fingerprint.encode())
    digest.update(json.dumps(dataclasses.asdict(filter)).encode())
    for shard in pairs.shards:
        digest.update(json.dumps([(name, column["crc"]) for name, column in shard.header["columns"].items()]).encode())
    return digest.hexdigest()[:32]


def _load(path: Path, size: int) -> tuple[UInt8[np.ndarray, " bytes"], dict[str, int]] | None:
    try:
        head, _, bits = path.read_bytes().partition(b"\n")
        fields = json.loads(head)
        whole = len(bits) == size and zlib.crc32(bits) == fields["crc"]
        return (np.frombuffer(bits, np.uint8), fields["skipped"]) if whole else None
    except (OSError, ValueError, KeyError):
        return None


def _judge(shards: Sequence[ShardIndex], filter: FilterConfig) -> tuple[_Mask, dict[str, int]]:
    ends = np.cumsum([shard.count for shard in shards])
    kept = np.empty(int(ends[-1]), np.bool_)
    counts: Counter[str] = Counter()
    slices = [slice(int(end) - shard.count, int(end)) for shard, end in zip(shards, ends, strict=True)]
    with ThreadPoolExecutor(_THREADS) as threads:
        judged = threads.map(lambda shard: _judge_shard(shard, filter), shards)
        for place, (passed, left_out) in zip(slices, judged, strict=True):
            kept[place] = passed
            counts.update(left_out)
    for name in filter.unique:
        counts[f"{name} seen before"] += _drop_duplicates(shards, slices, kept, name)
    return kept, dict(+counts)


def _judge_shard(shard: ShardIndex, filter: FilterConfig) -> tuple[_Mask, Counter[str]]:
    """Which pairs of a shard pass, and how many fail; a pair counts under the first reason that it meets."""
    kept = np.ones(shard.count, np.bool_)
    counts: Counter[str] = Counter()
    for reason, failed in _failures(shard, filter):
        counts[reason] += int(np.count_nonzero(kept & failed))
        kept &= ~failed
    return kept, counts


def _failures(shard: ShardIndex, filter: FilterConfig) -> Iterator[tuple[str, _Mask]]:
    if filter.min_side or filter.max_side or filter.max_aspect:
        width, height = _numbers(shard, "width"), _numbers(shard, "height")
        shorter, longer = np.minimum(width, height), np.maximum(width, height)
        yield "size unknown", longer == 0
        yield f"side below {filter.min_side} px", shorter < filter.min_side
        if filter.max_side:
            yield f"side above {filter.max_side} px", longer > filter.max_side
        if filter.max_aspect:
            yield f"aspect ratio above {filter.max_aspect:g}", longer > np.float32(filter.max_aspect) * shorter
    if filter.min_caption_characters or filter.max_caption_characters:
        characters = _numbers(shard, "caption_characters")
        yield f"caption below {filter.min_caption_characters} characters", characters < filter.min_caption_characters
        if filter.max_caption_characters:
            most = filter.max_caption_characters
            yield f"caption above {most} characters", characters > most
    for comparison in filter.comparisons:
        column = shard.column(comparison.field)
        missing = np.ones(shard.count, np.bool_) if column is None else _missing(column)
        yield f"no {comparison.field}", missing
        if column is not None:
            yield f"not {comparison}", ~_holds(column, comparison)


def _numbers(shard: ShardIndex, name: str) -> Float32[np.ndarray, " pairs"]:
    """A column that every index has."""
    column = shard.column(name)
    if column is None:
        raise KeyError(name)
    return column.values


def _missing(column: IndexColumn) -> _Mask:
    if column.kind == "number":
        return np.isnan(column.values)
    return column.values == 0 if column.kind == "hash" else column.values >= len(column.words)


def _holds(column: IndexColumn, comparison: Comparison) -> _Mask:
    if column.kind == "number":
        # Rounded as the column is, so that 0.28 equals 0.28.
        return comparison.compare(column.values, np.float32(comparison.value))
    if column.kind == "hash":
        return comparison.compare(column.values, np.uint64(hash_text(comparison.value)))
    place = column.words.index(comparison.value) if comparison.value in column.words else len(column.words) + 1
    return comparison.compare(column.values, place)


def _drop_duplicates(shards: Sequence[ShardIndex], slices: Sequence[slice], kept: _Mask, name: str) -> int:
    """Clear all but the first pair of each value; a pair without a value stays. Returns how many were cleared.

    Values are compared by 64-bit hashes, of which 1e8 different ones agree somewhere with a chance of 3e-4. A part of
    the hashes is in memory at a time: those that begin with the same bits.
    """
    parts = 1 << max(0, (int(np.count_nonzero(kept)) // _HASHES_AT_ONCE).bit_length())
    dropped = 0
    with ThreadPoolExecutor(_THREADS) as threads:
        for part in range(parts):

            def choose(shard: ShardIndex, place: slice, part: int = part) -> tuple[np.ndarray, np.ndarray]:
                values = _hashes(shard, name)
                chosen = np.flatnonzero((values & np.uint64(parts - 1) == part) & (values != 0) & kept[place])
                return values[chosen], chosen + place.start

            values, places = (np.concatenate(found) for found in zip(*threads.map(choose, shards, slices), strict=True))
            order = np.argsort(values, kind="stable")
            values = values[order]
            again = places[order[1:][values[1:] == values[:-1]]]
            kept[again] = False
            dropped += len(again)
    return dropped


def _hashes(shard: ShardIndex, name: str) -> np.ndarray:
    column = shard.column(name)
    if column is None:
        return np.zeros(shard.count, np.uint64)
    if column.kind == "hash":
        return column.values
    return np.array([*map(hash_text, column.words), 0], np.uint64)[np.minimum(column.values, len(column.words))]
