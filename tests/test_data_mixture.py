"""Mixed sets come in their shares, each in epochs of its own, the same however the run is split and resumed."""

from collections import Counter

import numpy as np
import pytest
from data_files import NumberTexts, pair_members, write_tar

from clipa_eqx.config import DataConfig, FilterConfig, StageConfig
from clipa_eqx.data import open_pairs, PairSource, training_batches
from clipa_eqx.data._mixture import take_turns
from clipa_eqx.data.loading._order import Order


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three sets of 6, 10 and 5 pairs, whose captions number them through."""
    folder = tmp_path_factory.mktemp("sets")
    first = 0
    for name, count in (("a", 6), ("b", 10), ("c", 5)):
        write_tar(folder / name / "0.tar", pair_members(count, first=first))
        first += count
    return tuple(str(folder / name) for name in "abc")


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.9, 0.05, 0.05), (1, 2, 3, 5, 7, 11), (1e9, 1.0), (2**0.5, 1)])
def test_shares_are_exact_from_any_start(weights):
    turns = take_turns(weights)
    sets, _ = turns.at(np.arange(2 * len(turns.sets)))
    shares = turns.counts / turns.counts.sum()
    np.testing.assert_allclose(shares, np.maximum(np.array(weights) / sum(weights), 2**-16), atol=2**-16)
    taken = np.cumsum(sets[:, None] == np.arange(len(weights)), axis=0)
    lag = taken - np.arange(1, len(sets) + 1)[:, None] * shares
    assert abs(lag).max() < 1


def test_each_turn_knows_what_its_set_gave_before():
    turns = take_turns([5, 3, 1])
    positions = np.arange(2 * len(turns.sets) + 1000)
    sets, places = turns.at(positions)
    for number in range(3):
        assert (places[sets == number] == np.arange((sets == number).sum())).all()
    far = 10**15 + np.array([3, 70_000, 0])
    several = [turns.at(far[index : index + 1]) for index in range(3)]
    for value, single in zip(turns.at(far), zip(*several, strict=True), strict=True):
        assert value.tolist() == np.concatenate(single).tolist()


def test_each_set_goes_through_its_own_epochs(sets):
    pairs = open_pairs(DataConfig(mixture=sets, mixture_weights=(2, 1, 1)))
    assert isinstance(pairs, PairSource)
    order = Order.of(pairs, seed=4)
    chosen, epochs = order.pairs(np.arange(480))
    for first, count, share in ((0, 6, 240), (6, 10, 120), (16, 5, 120)):
        own = (chosen >= first) & (chosen < first + count)
        assert own.sum() == share
        rounds = chosen[own].reshape(-1, count)
        assert (np.sort(rounds, axis=1) == first + np.arange(count)).all()
        assert (epochs[own].reshape(-1, count) == np.arange(share // count)[:, None]).all()
        assert len({tuple(row) for row in rounds.tolist()}) > 10


def test_a_substitute_comes_from_the_same_set(sets):
    order = Order.of(open_pairs(DataConfig(mixture=sets)), seed=0)
    for position in range(40):
        (chosen,), (epoch,) = order.pairs(np.array([position]))
        first, count = next((first, count) for first, count in ((0, 6), (6, 10), (16, 5)) if chosen < first + count)
        others, epochs = order.substitutes(position, count)
        assert sorted(others.tolist()) == list(range(first, first + count))
        assert others[0] != chosen
        assert (epochs == epoch).all()


def test_a_mixture_reads_like_its_sets(sets):
    pairs = open_pairs(DataConfig(mixture=sets))
    assert [pairs.captions(place) for place in range(21)] == [(f"caption {number}",) for number in range(21)]
    assert pairs[6].key == f"{sets[1]}: 0.tar/000000006"
    prints = {
        open_pairs(DataConfig(mixture=names, mixture_weights=weights)).fingerprint
        for names, weights in ((sets, ()), (sets, (1, 1, 1)), (sets, (1, 1, 2)), (sets[::-1], ()), (sets[:2], ()))
    }
    assert len(prints) == 5
    # Without weights the sets come in proportion to their sizes.
    chosen, _ = Order.of(pairs, seed=0).pairs(np.arange(2100))
    assert Counter(np.digitize(chosen, [6, 16]).tolist()) == {0: 600, 1: 1000, 2: 500}


def numbers(config, steps, start=0, process=(0, 1)):
    """Numbers of the pairs in each batch of one process."""
    batches = training_batches(
        open_pairs(config),
        NumberTexts(),
        config,
        StageConfig(batch_size=8, image_size=16),
        seed=3,
        process_index=process[0],
        process_count=process[1],
        start_step=start,
    )
    try:
        return np.array([next(batches).tokens[:, 0] for _ in range(steps)])
    finally:
        batches.close()


def test_a_run_goes_on_exactly_with_another_number_of_processes(sets):
    config = DataConfig(
        mixture=sets[1:], mixture_weights=(2, 1), filter=FilterConfig(min_caption_characters=10), caption_tokens=4
    )
    whole = numbers(config, 12)
    # The filter leaves out the captions with one digit.
    assert set(whole.ravel().tolist()) == set(range(10, 21))
    for start, count in ((5, 2), (7, 4), (9, 8)):
        parts = [numbers(config, 12 - start, start, (index, count)) for index in range(count)]
        assert (np.concatenate(parts, axis=1) == whole[start:]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "x", "mixture": ("a", "b")}, "both given"),
        ({"mixture": ("a", "a")}, "names a set twice"),
        ({"mixture": ("a", "b"), "mixture_weights": (1.0,)}, "1 numbers for 2 sets"),
        ({"mixture": ("a", "b"), "mixture_weights": (1.0, 0.0)}, r"must lie in \(0"),
    ],
)
def test_mixtures_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
