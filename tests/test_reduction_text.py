"""Text token reduction: hand-made cases, properties over many texts, and how often each token is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.reduction import block_text, keep_tokens, random_text, syntax_text, truncate_text


PAD, START, END = 0, 1, 2
WORDS = jnp.array([START, 11, 12, 13, 14, 15, 16, PAD, PAD, PAD])
ENDED = jnp.array([START, 11, 12, 13, 14, 15, 16, END, PAD, PAD])


def draw(strategy, keep, *, draws):
    """Positions of many draws from the two texts, without an end token and with one."""

    @jax.jit
    @jax.vmap
    def both(key):
        return [strategy(tokens, keep, pad_id=PAD, end_id=END, key=key) for tokens in (WORDS, ENDED)]

    return [np.asarray(kept) for kept in both(jax.random.split(jax.random.key(0), draws))]


def test_truncate_by_hand():
    np.testing.assert_array_equal(truncate_text(WORDS, 4, pad_id=PAD), [0, 1, 2, 3])
    np.testing.assert_array_equal(truncate_text(WORDS, 9, pad_id=PAD), np.arange(9))
    np.testing.assert_array_equal(truncate_text(ENDED, 4, pad_id=PAD, end_id=END), [0, 1, 2, 7])
    np.testing.assert_array_equal(truncate_text(ENDED, 8, pad_id=PAD, end_id=END), np.arange(8))
    np.testing.assert_array_equal(truncate_text(ENDED, 10, pad_id=PAD, end_id=END), np.arange(10))
    # Without the end token in it, the text is cut plainly.
    np.testing.assert_array_equal(truncate_text(WORDS, 4, pad_id=PAD, end_id=END), [0, 1, 2, 3])


def test_syntax_by_hand():
    #                     [CLS] a  red dog runs to  town
    priority = jnp.array([3, 3, 1, 0, 2, 3, 0, 0, 0, 0])
    for keep, expected in [(1, [0]), (3, [0, 3, 6]), (4, [0, 2, 3, 6]), (6, [0, 1, 2, 3, 4, 6]), (8, range(8))]:
        kept = syntax_text(WORDS, keep, priority=priority, pad_id=PAD)
        np.testing.assert_array_equal(kept, list(expected))
    kept = syntax_text(ENDED, 4, priority=priority, pad_id=PAD, end_id=END)
    np.testing.assert_array_equal(kept, [0, 3, 6, 7])
    # Equal classes: the earlier tokens win.
    kept = syntax_text(WORDS, 4, priority=jnp.full(10, 3), pad_id=PAD)
    np.testing.assert_array_equal(kept, [0, 1, 2, 3])
    # No prefix: nothing but the class decides.
    np.testing.assert_array_equal(syntax_text(WORDS, 2, priority=priority, pad_id=PAD, prefix=0), [3, 6])


def test_the_text_ends_at_the_first_end_token():
    """Both hold of OpenAI's vocabulary: texts may be padded with the end token, and "!" has the id of padding."""
    padded_with_end = jnp.array([START, 11, 12, END, END, END])
    np.testing.assert_array_equal(truncate_text(padded_with_end, 3, pad_id=END, end_id=END), [0, 1, 3])
    np.testing.assert_array_equal(truncate_text(padded_with_end, 5, pad_id=END, end_id=END), np.arange(5))
    with_exclamation = jnp.array([START, 11, PAD, 12, END, PAD])
    np.testing.assert_array_equal(truncate_text(with_exclamation, 4, pad_id=PAD, end_id=END), [0, 1, 2, 4])


def test_block_starts_uniformly_at_every_place():
    kept, ended = draw(block_text, 4, draws=4000)
    np.testing.assert_array_equal(kept[:, 0], 0)
    np.testing.assert_array_equal(np.diff(kept[:, 1:], axis=1), 1)
    assert set(kept[:, 1]) == {1, 2, 3, 4}
    assert np.abs(np.bincount(kept[:, 1])[1:] - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)
    np.testing.assert_array_equal(np.diff(ended[:, 1:3], axis=1), 1)
    np.testing.assert_array_equal(ended[:, [0, 3]], np.broadcast_to([0, 7], (4000, 2)))
    assert set(ended[:, 1]) == {1, 2, 3, 4, 5}


def test_random_keeps_every_token_equally_often():
    kept, ended = draw(random_text, 4, draws=4000)
    counts = np.bincount(kept.reshape(-1), minlength=10)
    assert counts[0] == 4000
    assert np.abs(counts[1:7] - 2000).max() < 5 * np.sqrt(4000 * 0.25)
    assert counts[7:].sum() == 0
    np.testing.assert_array_equal(ended[:, [0, 3]], np.broadcast_to([0, 7], (4000, 2)))
    counts = np.bincount(ended[:, 1:3].reshape(-1), minlength=7)
    assert np.abs(counts[1:] - 4000 / 3).max() < 5 * np.sqrt(4000 * 2 / 9)


@pytest.mark.parametrize("name", ["truncate", "random", "block", "syntax"])
@pytest.mark.parametrize(("end_id", "prefix"), [(None, 0), (END, 2)])
def test_properties_over_many_texts(name, end_id, prefix):
    """Texts of every length, the empty and the full one included: kept positions are distinct, ascending, and real
    tokens come before padding."""
    length, keeps = 12, (4, 12)
    rng = np.random.default_rng(0)
    sizes = np.arange(length + 1).repeat(8)
    tokens = np.where(np.arange(length) < sizes[:, None], rng.integers(10, 99, (sizes.size, length)), PAD)
    if end_id is not None:
        tokens[np.arange(sizes.size), np.maximum(sizes - 1, 0)] = END
    priority = rng.integers(0, 4, tokens.shape)

    @jax.jit
    @jax.vmap
    def reduce(tokens, priority, key):
        settings = {"priority": priority, "pad_id": PAD, "prefix": prefix, "end_id": end_id, "key": key}
        return [keep_tokens(name, tokens, keep, **settings) for keep in keeps]

    keys = jax.random.split(jax.random.key(0), sizes.size)
    for keep, kept in zip(keeps, reduce(jnp.asarray(tokens), jnp.asarray(priority), keys), strict=True):
        kept = np.asarray(kept)
        assert kept.shape == (sizes.size, keep)
        assert np.all(np.diff(kept, axis=1) > 0)
        assert kept.min() >= 0
        assert kept.max() < length
        np.testing.assert_array_equal(kept[:, :prefix], np.broadcast_to(np.arange(prefix), (sizes.size, prefix)))
        real = tokens != PAD
        kept_real = np.take_along_axis(real, kept, axis=1)[:, prefix:].sum(axis=1)
        np.testing.assert_array_equal(kept_real, np.minimum(real[:, prefix:].sum(axis=1), keep - prefix))
        if end_id is not None:
            assert np.all(np.any(np.take_along_axis(tokens, kept, axis=1) == END, axis=1))


def test_keep_tokens_follows_the_name():
    key, priority = jax.random.key(5), jnp.array([3, 3, 1, 0, 2, 3, 0, 0, 0, 0])
    strategies = {
        "truncate": truncate_text,
        "random": functools.partial(random_text, key=key),
        "block": functools.partial(block_text, key=key),
        "syntax": functools.partial(syntax_text, priority=priority),
    }
    for name, strategy in strategies.items():
        kept = keep_tokens(name, ENDED, 4, priority=priority, pad_id=PAD, end_id=END, key=key)
        np.testing.assert_array_equal(kept, strategy(ENDED, 4, pad_id=PAD, end_id=END))


@pytest.mark.parametrize(
    ("keep", "prefix", "end_id", "message"),
    [
        (11, 1, None, "keep=11 is more than the 10 tokens given"),
        (0, 0, None, "keep must be at least 1, got 0"),
        (2, 3, None, "keep must be at least 3, got 2"),
        (1, 1, END, "keep must be at least 2, got 1"),
        (4, -1, None, "prefix must be at least 0, got -1"),
    ],
)
def test_impossible_counts_are_named(keep, prefix, end_id, message):
    with pytest.raises(ValueError, match=message):
        truncate_text(WORDS, keep, pad_id=PAD, prefix=prefix, end_id=end_id)
