"""The order of training pairs and their random numbers, each a pure function of seed, epoch and position.

Nothing here keeps a state or a table, so any position can be asked for, in any process and thread, and a run that
starts at step 1000 sees what an unbroken run would have seen.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from ..._checks import check_at_least
from .._mixture import MixedPairs, take_turns, Turns
from .._pair import PairSource


_ROUNDS = 12


@dataclass(frozen=True)
class Order:
    """The order of an endless training run over one set of pairs, or over several that take turns.

    Each set is gone through in reshuffled epochs of its own.
    """

    sizes: tuple[int, ...]
    """Pairs of each set. They are numbered through, set after set."""
    turns: Turns
    """Which set each position belongs to."""
    seed: int

    @classmethod
    def of(cls, pairs: PairSource, seed: int) -> "Order":
        """The order of a source of pairs."""
        if isinstance(pairs, MixedPairs):
            return cls(pairs.sizes, take_turns(pairs.weights), seed)
        return cls((len(pairs),), take_turns([1.0]), seed)

    def pairs(
        self, positions: Int64[np.ndarray, " batch"]
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
        """The pair at each position, and the epoch of its set in which it stands there."""
        sets, places = self.turns.at(positions)
        pairs, epochs = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(sets):
            chosen = sets == number
            pairs[chosen], epochs[chosen] = self._pairs_of_set(int(number), places[chosen])
        return pairs, epochs

    def substitutes(self, position: int, most: int) -> tuple[Int64[np.ndarray, " most"], Int64[np.ndarray, " most"]]:
        """Pairs that may stand in for the one at a position, and their epochs: those half an epoch of its set on."""
        sets, places = self.turns.at(np.array([position]))
        count = self.sizes[sets[0]]
        epoch, place = divmod(int(places[0]), count)
        return self._pairs_of_set(int(sets[0]), epoch * count + (place + count // 2 + np.arange(most)) % count)

    def _pairs_of_set(
        self, number: int, places: Int64[np.ndarray, " batch"]
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
        count = self.sizes[number]
        return sum(self.sizes[:number]) + shuffled(places, count, self.seed, part=number), places // count


def shuffled(
    positions: Int64[np.ndarray, " batch"], count: int, seed: int, *, part: int = 0
) -> Int64[np.ndarray, " batch"]:
    """The pairs at some positions of an endless sequence of reshuffled epochs.

    Each epoch is a permutation of all pairs, keyed by (seed, epoch): a Feistel network over the next power of two,
    walked until it lands below `count` (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). It costs no
    memory, however many pairs there are, and does not depend on how many processes share the work.

    Args:
        positions: at least 0; position `count` is the first of the second epoch.
        count: number of pairs, at least 1.
        seed: at least 0.
        part: which set this is, of several of one seed.

    Returns:
        Indices of pairs, in [0, count).
    """
    check_at_least("count", count, 1)
    epochs, places = np.divmod(positions, count)
    pairs = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        pairs[chosen] = _permute(places[chosen], count, _keys(seed, int(epoch), _ROUNDS, stream=2 * part))
    return pairs


def sample_draws(
    pairs: Int64[np.ndarray, " batch"], epochs: Int64[np.ndarray, " batch"], seed: int, draws: int
) -> Float64[np.ndarray, "batch draws"]:
    """Uniform numbers in [0, 1) for each sample, keyed by (seed, epoch, pair) alone.

    A NumPy generator per sample costs 18 us, a twentieth of decoding a small picture; hashing a whole batch at once
    costs a hundredth of that.

    Args:
        pairs: index of each sample's pair.
        epochs: epoch of each sample.
        seed: at least 0.
        draws: numbers per sample.
    """
    numbers = np.empty((len(pairs), draws), np.float64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        # An odd stream keeps these keys apart from those of the permutations.
        keys = _keys(seed, int(epoch), draws + 1, stream=1)
        samples = _scramble(pairs[chosen].astype(np.uint64) + keys[0])
        bits = _scramble(samples[:, None] ^ keys[None, 1:])
        numbers[chosen] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _permute(
    places: Int64[np.ndarray, " batch"], count: int, keys: UInt64[np.ndarray, " rounds"]
) -> Int64[np.ndarray, " batch"]:
    bits = max(2, (count - 1).bit_length())
    values = _feistel(places.astype(np.uint64), bits, keys)
    while (outside := values >= count).any():
        values[outside] = _feistel(values[outside], bits, keys)
    return values.astype(np.int64)


def _feistel(
    values: UInt64[np.ndarray, " batch"], bits: int, keys: UInt64[np.ndarray, " rounds"]
) -> UInt64[np.ndarray, " batch"]:
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << bits // 2) - 1)
    high_mask = np.uint64((1 << bits - bits // 2) - 1)
    high, low = values >> low_bits, values & low_mask
    for key_high, key_low in zip(keys[::2], keys[1::2], strict=True):
        high ^= _scramble(low + key_high) & high_mask
        low ^= _scramble(high + key_low) & low_mask
    return high << low_bits | low


def _scramble(values: UInt64[np.ndarray, "*axes"]) -> UInt64[np.ndarray, "*axes"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): each input bit flips each output bit half the time."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _keys(seed: int, epoch: int, count: int, *, stream: int) -> UInt64[np.ndarray, " count"]:
    return np.random.SeedSequence([seed, epoch, stream]).generate_state(count, np.uint64)
