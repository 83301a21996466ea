"""Ranks of right answers, against a plain count."""

import numpy as np
import pytest

from clipa_eqx.evaluation import _rank
from clipa_eqx.evaluation._rank import first_right, NEVER


@pytest.mark.parametrize("chunk", [2**24, 60])
def test_ranks_equal_a_plain_count(monkeypatch, chunk):
    monkeypatch.setattr(_rank, "_CHUNK", chunk)  # 60: chunks of 3 rows, the last one of 2
    rng = np.random.default_rng(0)
    queries, answers = rng.normal(size=(11, 4)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32)
    query_owner, answer_owner = np.arange(11) % 5, np.arange(20) % 4
    usable = rng.random(20) < 0.7
    ranks = first_right(queries, answers, query_owner=query_owner, answer_owner=answer_owner, usable=usable)
    for query, owner, rank in zip(queries, query_owner, ranks, strict=True):
        order = [index for index in np.argsort(-(answers @ query)) if usable[index]]
        expected = [place for place, index in enumerate(order) if answer_owner[index] == owner]
        assert rank == (expected[0] if expected else NEVER)


def test_equal_answers_come_in_order():
    queries, answers = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    numbers = np.arange(4)
    assert first_right(queries, answers, query_owner=np.array([0, 2, 9]), answer_owner=numbers).tolist() == [
        0,
        2,
        NEVER,
    ]


def test_what_is_not_a_number_is_wrong():
    answers = np.array([[1, 0], [np.nan, 0], [0, 1]], np.float32)
    queries = np.array([[1, 0], [1, 0], [np.nan, 0]], np.float32)
    ranks = first_right(queries, answers, query_owner=np.array([0, 1, 2]), answer_owner=np.arange(3))
    assert ranks.tolist() == [1, NEVER, NEVER]
