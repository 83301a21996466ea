"""Several sets of pairs as one, each with a share of the samples."""

import bisect
import dataclasses
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt16

from ._pair import Pair, PairSource
from .index._shards import check_index


_ROUND = 1 << 16
"""Turns after which the pattern of sets repeats; shares are multiples of one over it."""


@dataclass(frozen=True)
class Turns:
    """Which of several sets each position of an endless sequence takes its sample from, and which sample of it.

    Turns come as evenly as they can: of the samples from the start to any position a set has its share to within one,
    and so of those between any two positions to within two. It is a pattern of 65,536 turns that repeats: nothing is
    drawn, and any position can be asked for.
    """

    sets: UInt16[np.ndarray, " turns"]
    """Of each turn of a round."""
    earlier: Int32[np.ndarray, " turns"]
    """Turns that the same set had before, in the round."""
    counts: Int64[np.ndarray, " sets"]
    """Turns of each set in a round."""

    def at(
        self, positions: Int64[np.ndarray, " batch"]
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
        """The set of each position, and how many samples that set gave before it."""
        rounds, turns = np.divmod(positions, len(self.sets))
        sets = self.sets[turns].astype(np.int64)
        return sets, rounds * self.counts[sets] + self.earlier[turns]


def take_turns(weights: Sequence[int | float]) -> Turns:
    """Turns in proportion to weights.

    The k-th turn of a set with a share s is due in the turns from floor(k / s) to ceil((k + 1) / s); of the sets with
    one due, the one whose time ends first has it. All come in time, as the shares sum to one: P-fair scheduling of one
    processor (Baruah, Cohen, Plaxton and Varvel, Proportionate Progress, 1996).

    Args:
        weights: of each set, above 0; only their ratios count. They are rounded to multiples of a 65,536th of their
            sum, and no set gets less than one turn.
    """
    if len(weights) == 1:
        return Turns(np.zeros(1, np.uint16), np.zeros(1, np.int32), np.ones(1, np.int64))
    counts = _round_shares(weights)
    total = int(counts.sum())
    # Turns that wait for their time, and turns that are due, by the end of their time.
    waiting = [(0, place) for place in range(len(weights))]
    due: list[tuple[int, int]] = []
    had = [0] * len(weights)
    sets, earlier = np.empty(total, np.uint16), np.empty(total, np.int32)
    for turn in range(total):
        while waiting and waiting[0][0] <= turn:
            _, place = heapq.heappop(waiting)
            heapq.heappush(due, (-(-(had[place] + 1) * total // int(counts[place])), place))
        _, place = heapq.heappop(due)
        sets[turn], earlier[turn] = place, had[place]
        had[place] += 1
        if had[place] < counts[place]:
            heapq.heappush(waiting, (had[place] * total // int(counts[place]), place))
    return Turns(sets, earlier, counts)


def _round_shares(weights: Sequence[int | float]) -> Int64[np.ndarray, " sets"]:
    """Whole turns in proportion to weights, by largest remainders, that sum to a round; at least one each."""
    exact = np.array(weights, np.float64) / sum(weights) * _ROUND
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while (missing := _ROUND - int(counts.sum())) > 0:
        counts[np.argmax(exact - counts)] += 1
    # What was raised to one turn is taken from where it changes least.
    counts[np.argmax(counts)] += missing
    return counts


class MixedPairs:
    """Sets of pairs one after the other, with the share of training samples that each is to have."""

    def __init__(self, sources: dict[str, PairSource], weights: Sequence[int | float]) -> None:
        """Join sets.

        Args:
            sources: the sets by name, which their keys begin with.
            weights: of each set, above 0; empty: in proportion to their sizes.
        """
        self._sources = sources
        self._ends = list(itertools.accumulate(map(len, sources.values())))
        self.sizes = tuple(map(len, sources.values()))
        self.weights = tuple(weights) or tuple(map(float, self.sizes))
        counts: Counter[str] = Counter()
        digest = hashlib.sha256(repr(self.weights).encode())
        for source in sources.values():
            counts.update(source.skipped)
            digest.update(source.fingerprint.encode())
        self.skipped = dict(sorted(counts.items()))
        self.fingerprint = digest.hexdigest()[:32]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Pair:
        name, place = self._find(index)
        pair = self._sources[name][place]
        return dataclasses.replace(pair, key=f"{name}: {pair.key}")

    def key(self, index: int) -> str:
        """Name of the set, and which record of it."""
        name, place = self._find(index)
        return f"{name}: {self._sources[name].key(place)}"

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions alone."""
        name, place = self._find(index)
        return self._sources[name].captions(place)

    @property
    def sources(self) -> tuple[PairSource, ...]:
        """The sets."""
        return tuple(self._sources.values())

    def locate_source(self, index: int) -> tuple[int, int]:
        """In which set a pair is, and where in it."""
        index = check_index(index, len(self))
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part] - self.sizes[part])

    def _find(self, index: int) -> tuple[str, int]:
        part, place = self.locate_source(index)
        return list(self._sources)[part], place
