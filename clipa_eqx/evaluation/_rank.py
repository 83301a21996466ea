"""Where the right answer stands among all, best first."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


NEVER = np.iinfo(np.int32).max
"""The rank of an answer that is not there."""

_CHUNK = 2**24
"""Similarities held at once: 64 MiB."""


def first_right(
    queries: Float[np.ndarray, "queries embed"],
    answers: Float[np.ndarray, "answers embed"],
    *,
    query_owner: Int[np.ndarray, " queries"],
    answer_owner: Int[np.ndarray, " answers"],
    usable: Bool[np.ndarray, " answers"] | None = None,
) -> Int[np.ndarray, " queries"]:
    """Rank of each query's best right answer by cosine similarity; 0 is the best.

    An answer is right if it has the query's owner. Of equal answers the earlier one comes first. A similarity that is
    not a number counts as greater than all others, and as wrong, so a broken model is never right.

    Args:
        queries: unit vectors.
        answers: unit vectors.
        query_owner: what each query stands for, as a label.
        answer_owner: what each answer stands for.
        usable: which answers take part; none: all.

    Returns:
        Ranks, and `NEVER` where no right answer takes part.
    """
    if usable is None:
        usable = np.ones(len(answers), bool)
    size = max(1, min(len(queries), _CHUNK // len(answers)))
    on_device = jnp.asarray(answers), jnp.asarray(answer_owner, jnp.int32), jnp.asarray(usable)
    ranks: list[np.ndarray] = []
    for first in range(0, len(queries), size):
        rows, owners = queries[first : first + size], query_owner[first : first + size]
        missing = size - len(rows)
        rows, owners = np.pad(rows, ((0, missing), (0, 0))), np.pad(owners, (0, missing)).astype(np.int32)
        ranks.append(np.asarray(_rank_chunk(rows, owners, *on_device))[: size - missing])
    return np.concatenate(ranks)


@jax.jit
def _rank_chunk(
    queries: Float[Array, "rows embed"],
    query_owner: Int[Array, " rows"],
    answers: Float[Array, "answers embed"],
    answer_owner: Int[Array, " answers"],
    usable: Bool[Array, " answers"],
) -> Int[Array, " rows"]:
    # Full float32: the default on TPUs and GPUs rounds enough to reorder near equals.
    similarity = jnp.matmul(queries, answers.T, precision="highest")

    def rank(row: Float[Array, " answers"], owner: Int[Array, ""]) -> Int[Array, ""]:
        row = jnp.where(usable, row, -jnp.inf)
        right = usable & (answer_owner == owner)
        best = jnp.argmax(jnp.where(right, row, -jnp.inf))
        ahead = usable & ~(row <= row[best])
        equal_and_earlier = usable & (row == row[best]) & (jnp.arange(row.size) < best)
        return jnp.where(right.any() & ~jnp.isnan(row[best]), ahead.sum() + equal_and_earlier.sum(), NEVER)

    return jax.vmap(rank)(similarity, query_owner)
