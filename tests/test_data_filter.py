"""Filters leave out what they say, count it by reason, and what is left is read like any set."""

import json
import pickle

import numpy as np
import pytest
from data_files import write_tar

from clipa_eqx.config import DataConfig, FilterConfig
from clipa_eqx.data import open_pairs
from clipa_eqx.data.index import _filter


ROWS = [
    {"width": 100, "height": 80, "caption": "one", "similarity": 0.3, "LANGUAGE": "en", "url": "http://a/1"},
    {"width": 30, "height": 80, "caption": "three", "similarity": 0.28, "LANGUAGE": "en", "url": "http://a/2"},
    {"width": 500, "height": 90, "caption": "of many characters", "similarity": 0.2, "LANGUAGE": "de", "url": ""},
    {"width": 100, "height": 90, "caption": "four", "LANGUAGE": "en", "url": "http://a/1"},
    {"caption": "size unknown", "similarity": 0.9, "url": "http://a/3"},
    {"width": 100, "height": 90, "caption": "last", "similarity": 0.5, "LANGUAGE": "fr", "url": "http://a/2"},
]


@pytest.fixture
def folder(tmp_path):
    """Two tars of three rows each; the key of a row is its number, modulo 4."""
    for shard in range(2):
        members = []
        for row in range(3 * shard, 3 * shard + 3):
            members += [(f"{row % 4}.jpg", b"%d" % row), (f"{row % 4}.json", json.dumps(ROWS[row]).encode())]
        write_tar(tmp_path / "set" / f"{shard}.tar", members)
    return tmp_path / "set"


def open_filtered(folder, **options):
    return open_pairs(DataConfig(train=str(folder), filter=FilterConfig(**options)))


def rows(pairs):
    return [int(pairs[place].image) for place in range(len(pairs))]


@pytest.mark.parametrize(
    ("options", "left", "skipped"),
    [
        ({}, [0, 1, 2, 3, 4, 5], {}),
        ({"min_side": 31}, [0, 2, 3, 5], {"side below 31 px": 1, "size unknown": 1}),
        ({"max_side": 100}, [0, 1, 3, 5], {"side above 100 px": 1, "size unknown": 1}),
        (
            {"max_aspect": 2, "min_side": 80},
            [0, 3, 5],
            {"aspect ratio above 2": 1, "side below 80 px": 1, "size unknown": 1},
        ),
        (
            {"min_caption_characters": 4, "max_caption_characters": 12},
            [1, 3, 4, 5],
            {"caption below 4 characters": 1, "caption above 12 characters": 1},
        ),
        ({"where": ("similarity>=0.28",)}, [0, 1, 4, 5], {"no similarity": 1, "not similarity>=0.28": 1}),
        ({"where": ("LANGUAGE = en", "similarity<.3")}, [1], {"no LANGUAGE": 1, "no similarity": 1}),
        ({"where": ("LANGUAGE!=en",)}, [2, 5], {"no LANGUAGE": 1, "not LANGUAGE!=en": 3}),
        ({"where": ("url=http://a/2",)}, [1, 5], {"not url=http://a/2": 4}),
        ({"unique": ("url",)}, [0, 1, 2, 4], {"url seen before": 2}),
        ({"unique": ("key",)}, [0, 1, 2, 3], {"key seen before": 2}),
        ({"unique": ("url",), "min_side": 50}, [0, 2, 5], {"url seen before": 1}),
    ],
)
def test_filters(folder, options, left, skipped):
    pairs = open_filtered(folder, **options)
    assert rows(pairs) == left
    assert {reason: pairs.skipped.get(reason) for reason in skipped} == skipped
    assert sum(pairs.skipped.values()) == len(ROWS) - len(left)
    assert [pairs.captions(place)[0] for place in range(len(pairs))] == [ROWS[row]["caption"] for row in left]


def test_the_fingerprint_follows_what_is_left(folder):
    prints = [
        open_filtered(folder, **options).fingerprint
        for options in ({}, {"min_side": 31}, {"min_side": 32}, {"max_side": 100}, {"where": ("LANGUAGE!=xx",)})
    ]
    assert prints[1] == prints[2], "the same pairs are left"
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": ("punsafe<0.5",)}, r"names 'punsafe', which no shard has; there are LANGUAGE, caption_characters"),
        ({"where": ("LANGUAGE<3",)}, "LANGUAGE, which holds words"),
        ({"where": ("similarity=high",)}, "compares numbers with 'high'"),
        ({"unique": ("similarity",)}, "holds numbers"),
        ({"min_side": 1000}, r"leaves none of 6 pairs \(.*side below 1000 px: 5"),
    ],
)
def test_filters_that_do_not_fit(folder, options, message):
    with pytest.raises(ValueError, match=message):
        open_filtered(folder, **options)


def test_a_filter_needs_an_index(tmp_path):
    (tmp_path / "a.csv").write_text("filepath,title\na.jpg,one\n")
    with pytest.raises(ValueError, match=r"data\.filter needs an index"):
        open_filtered(tmp_path / "a.csv", min_side=1)


def test_the_result_for_a_large_set_is_kept(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_filter, "_KEPT_FROM", 1)
    first = open_filtered(folder, min_side=31)
    (path,) = (tmp_path / "cache" / "clipa_eqx" / "filter").iterdir()
    with monkeypatch.context() as context:
        context.setattr(_filter, "_judge", None)
        again = open_filtered(folder, min_side=31)
    assert (rows(again), again.skipped, again.fingerprint) == (rows(first), first.skipped, first.fingerprint)
    for damaged in (b"", path.read_bytes()[:-1] + b"?", b"{}\n?"):
        path.write_bytes(damaged)
        assert rows(open_filtered(folder, min_side=31)) == rows(first)


def test_places_and_duplicates_in_many_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(_filter, "_HASHES_AT_ONCE", 64)
    numbers = np.random.default_rng(0).integers(0, 1200, 3000)
    for shard, chunk in enumerate(np.split(numbers, 3)):
        members = []
        for place, number in enumerate(chunk):
            fields = {"caption": "x", "url": f"http://a/{number}", "similarity": float(number % 7)}
            members += [(f"{place:04d}.jpg", b"%d" % number), (f"{place:04d}.json", json.dumps(fields).encode())]
        write_tar(tmp_path / "set" / f"{shard}.tar", members)
    pairs = open_filtered(tmp_path / "set", where=("similarity!=3",), unique=("url",))
    expected = list(dict.fromkeys(int(number) for number in numbers if number % 7 != 3))
    copy = pickle.loads(pickle.dumps(pairs))  # noqa: S301
    assert rows(pairs) == rows(copy) == expected
    assert [pairs[-1].key, len(pairs)] == [pairs[len(expected) - 1].key, len(expected)]
    with pytest.raises(IndexError, match=f"sequence of {len(expected)}"):
        pairs[len(expected)]
