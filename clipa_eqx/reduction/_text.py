"""Text token reduction: which tokens of a longer text are kept.

The four ways of CLIPA (arXiv 2305.07017, section 3.2): truncate, random, block, syntax. Each function returns token
positions, ascending and distinct, so the kept tokens stay in order. The first `prefix` tokens and the end token are
always kept, and a padding slot is kept only when every token of the text is. The number kept is static, so the
result has a fixed length under jit.

The text ends at the first `end_id`; tokens up to there belong to it even if they equal `pad_id` (id 0 is both the
padding and "!" of OpenAI's vocabulary, and other vocabularies pad with the end token).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .._checks import check_at_least, check_choice
from .._types import Key, TokenIds
from ..config import TextReduction


def truncate_text(
    tokens: TokenIds, keep: int, *, pad_id: int, prefix: int = 1, end_id: int | None = None
) -> Int[Array, " keep"]:
    """Positions of the first tokens. With an `end_id` the end token takes the last slot, as CLIP's tokenizer does.

    Args:
        tokens: ids of one text, padded.
        keep: number of tokens to keep, prefix and end token included; at most the length of `tokens`.
        pad_id: id of padding.
        prefix: leading tokens that are always kept (class or start token), at least 0.
        end_id: id of the end token; None: the vocabulary has none.

    Returns:
        Ascending positions.

    Raises:
        ValueError: `tokens` are fewer than `keep`, or `keep` has no room for the prefix and the end token.
    """
    fixed, free = _split_text(tokens, keep, pad_id=pad_id, prefix=prefix, end_id=end_id)
    return _choose(jnp.zeros(tokens.shape, jnp.int32), keep, fixed=fixed, free=free)


def random_text(
    tokens: TokenIds, keep: int, *, pad_id: int, prefix: int = 1, end_id: int | None = None, key: Key
) -> Int[Array, " keep"]:
    """Positions of tokens drawn without replacement, every set equally likely.

    Unlike CLIPA-JAX, which shuffles what it keeps, the order of the text is preserved, as the paper draws it.

    Args:
        tokens: ids of one text, padded.
        keep: number of tokens to keep, prefix and end token included; at most the length of `tokens`.
        pad_id: id of padding.
        prefix: leading tokens that are always kept (class or start token), at least 0.
        end_id: id of the end token; None: the vocabulary has none.
        key: randomness.

    Returns:
        Ascending positions.

    Raises:
        ValueError: `tokens` are fewer than `keep`, or `keep` has no room for the prefix and the end token.
    """
    fixed, free = _split_text(tokens, keep, pad_id=pad_id, prefix=prefix, end_id=end_id)
    return _choose(jax.random.permutation(key, tokens.size), keep, fixed=fixed, free=free)


def block_text(
    tokens: TokenIds, keep: int, *, pad_id: int, prefix: int = 1, end_id: int | None = None, key: Key
) -> Int[Array, " keep"]:
    """Positions of consecutive tokens; the start is uniform over all that leave no slot empty, the last included.

    A text that fits is kept whole.

    Args:
        tokens: ids of one text, padded.
        keep: number of tokens to keep, prefix and end token included; at most the length of `tokens`.
        pad_id: id of padding.
        prefix: leading tokens that are always kept (class or start token), at least 0.
        end_id: id of the end token; None: the vocabulary has none.
        key: randomness.

    Returns:
        Ascending positions.

    Raises:
        ValueError: `tokens` are fewer than `keep`, or `keep` has no room for the prefix and the end token.
    """
    fixed, free = _split_text(tokens, keep, pad_id=pad_id, prefix=prefix, end_id=end_id)
    spare = jnp.maximum(free.sum() + fixed.sum() - keep, 0)
    start = jax.random.randint(key, (), 0, spare + 1)
    before_window = jnp.cumsum(free) <= start
    return _choose(before_window.astype(jnp.int32), keep, fixed=fixed, free=free)


def syntax_text(
    tokens: TokenIds,
    keep: int,
    *,
    priority: Int[Array, " length"],
    pad_id: int,
    prefix: int = 1,
    end_id: int | None = None,
) -> Int[Array, " keep"]:
    """Positions of the tokens that say most: lowest priority value first, earlier tokens first among equals.

    CLIPA keeps nouns, then adjectives, then verbs, then the rest. Word classes come from the caller, one value per
    token; give every piece of a word the same one.

    Args:
        tokens: ids of one text, padded.
        keep: number of tokens to keep, prefix and end token included; at most the length of `tokens`.
        priority: per token: 0 noun, 1 adjective, 2 verb, 3 other. Ignored on prefix, end token and padding.
        pad_id: id of padding.
        prefix: leading tokens that are always kept (class or start token), at least 0.
        end_id: id of the end token; None: the vocabulary has none.

    Returns:
        Ascending positions.

    Raises:
        ValueError: `tokens` are fewer than `keep`, or `keep` has no room for the prefix and the end token.
    """
    fixed, free = _split_text(tokens, keep, pad_id=pad_id, prefix=prefix, end_id=end_id)
    return _choose(priority, keep, fixed=fixed, free=free)


def keep_tokens(
    name: TextReduction,
    tokens: TokenIds,
    keep: int,
    *,
    priority: Int[Array, " length"],
    pad_id: int,
    prefix: int = 1,
    end_id: int | None = None,
    key: Key,
) -> Int[Array, " keep"]:
    """Positions kept by the reduction of that name; `priority` and `key` are read only where it needs them.

    Args:
        name: the reduction.
        tokens: ids of one text, padded.
        keep: number of tokens to keep, prefix and end token included; at most the length of `tokens`.
        priority: word class per token, as in `syntax_text`.
        pad_id: id of padding.
        prefix: leading tokens that are always kept (class or start token), at least 0.
        end_id: id of the end token; None: the vocabulary has none.
        key: randomness.

    Returns:
        Ascending positions.

    Raises:
        ValueError: an unknown name, `tokens` fewer than `keep`, or no room for the prefix and the end token.
    """
    check_choice("text reduction", name, TextReduction)
    if name == "truncate":
        return truncate_text(tokens, keep, pad_id=pad_id, prefix=prefix, end_id=end_id)
    if name == "syntax":
        return syntax_text(tokens, keep, priority=priority, pad_id=pad_id, prefix=prefix, end_id=end_id)
    draw = random_text if name == "random" else block_text
    return draw(tokens, keep, pad_id=pad_id, prefix=prefix, end_id=end_id, key=key)


def _split_text(
    tokens: TokenIds, keep: int, *, pad_id: int, prefix: int, end_id: int | None
) -> tuple[Bool[Array, " length"], Bool[Array, " length"]]:
    """Which slots are always kept, and which of the text's others may be; what is left is padding."""
    check_at_least("prefix", prefix, 0)
    check_at_least("keep", keep, max(1, prefix + (end_id is not None)))
    if keep > tokens.size:
        raise ValueError(f"keep={keep} is more than the {tokens.size} tokens given; keep fewer, or read longer texts.")
    position = jnp.arange(tokens.size)
    if end_id is None:
        end = jnp.int32(-1)
    else:
        is_end = tokens == end_id
        end = jnp.where(is_end.any(), jnp.argmax(is_end), -1)
    fixed = (position < prefix) | (position == end)
    in_text = (position <= end) | (tokens != pad_id)
    return fixed, in_text & ~fixed


def _choose(
    preference: Int[Array, " length"], keep: int, *, fixed: Bool[Array, " length"], free: Bool[Array, " length"]
) -> Int[Array, " keep"]:
    """The fixed slots, then the free ones of lowest preference, then padding; earlier slots first among equals."""
    tier = jnp.where(fixed, 0, jnp.where(free, 1, 2))
    order = jnp.lexsort((jnp.where(free, preference, 0), tier))  # stable
    return jnp.sort(order[:keep])
