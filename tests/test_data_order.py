"""The order of training pairs is a bijection per epoch and a pure function of seed and position."""

import math

import numpy as np
import pytest

from clipa_eqx.data.loading._order import sample_draws, shuffled


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 1000, 65537])
def test_each_epoch_is_a_permutation(count):
    order = shuffled(np.arange(3 * count), count, seed=5).reshape(3, count)
    assert (np.sort(order, axis=1) == np.arange(count)).all()


def test_order_changes_with_epoch_and_seed():
    first, second = shuffled(np.arange(2000), 1000, seed=5).reshape(2, 1000)
    other = shuffled(np.arange(1000), 1000, seed=6)
    for a, b in ((first, second), (first, other), (first, np.arange(1000))):
        assert (a == b).mean() < 0.01


def test_any_slice_is_that_of_the_whole():
    whole = shuffled(np.arange(500), 70, seed=3)
    assert (shuffled(np.arange(123, 401), 70, seed=3) == whole[123:401]).all()
    assert (shuffled(np.array([499, 0, 69, 70]), 70, seed=3) == whole[[499, 0, 69, 70]]).all()


def test_sets_of_billions_need_no_table():
    count = 5 * 10**9
    order = shuffled(np.arange(count - 1000, count + 1000), count, seed=0)
    assert len(set(order[:1000].tolist())) == 1000
    assert order.min() >= 0
    assert order.max() < count
    assert abs(order.mean() / count - 0.5) < 0.03


@pytest.mark.parametrize("count", [3, 5])
def test_small_orders_are_equally_likely(count):
    trials = 500
    orders = shuffled(np.arange(trials * count), count, seed=2).reshape(trials, count)
    # Each pair is at each place equally often: 5 standard deviations of a binomial.
    for place in range(count):
        share = np.bincount(orders[:, place], minlength=count) / trials
        assert abs(share - 1 / count).max() < 5 * math.sqrt(1 / count * (1 - 1 / count) / trials)


def test_neighbours_in_order_are_unrelated():
    order = shuffled(np.arange(20000), 20000, seed=1).astype(np.float64)
    for lag in (1, 2, 64, 128):
        assert abs(np.corrcoef(order[lag:], order[:-lag])[0, 1]) < 5 / math.sqrt(20000)
    assert abs(np.corrcoef(order, np.arange(20000))[0, 1]) < 5 / math.sqrt(20000)


def test_draws_are_uniform_and_belong_to_the_sample():
    pairs, epochs = np.arange(4000), np.zeros(4000, np.int64)
    draws = sample_draws(pairs, epochs, 7, 6)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean(axis=0) - 0.5).max() < 5 / math.sqrt(12 * 4000)
    correlations = np.corrcoef(draws.T) - np.eye(6)
    assert abs(correlations).max() < 5 / math.sqrt(4000)
    assert (sample_draws(pairs[[9, 3]], epochs[:2], 7, 6) == draws[[9, 3]]).all()
    assert (sample_draws(pairs, epochs + 1, 7, 6) != draws).all()
    assert (sample_draws(pairs, epochs, 8, 6) != draws).all()
