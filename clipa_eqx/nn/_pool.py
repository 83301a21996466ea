"""From tokens to one vector."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key, Position, TokenIds
from ..config import Activation, ImagePool, TextPool
from ._attention import attend, with_still_bias
from ._block import MLP
from ._layers import Initializer, LayerNorm, Linear, wide_dtype


class AttentionPool(eqx.Module):
    """A learned probe reads all tokens by attention, then a residual MLP (Lee et al., arXiv 1810.00825).

    As big_vision's MAP head: `y = attention(probe, x)`, result `y + mlp(norm(y))`.
    """

    probe: Float[Array, " dim"]
    query: Linear
    key_value: Linear
    out: Linear
    norm: LayerNorm
    mlp: MLP
    heads: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        init: Initializer,
        *,
        activation: Activation,
        norm_eps: float,
        key: Key,
    ) -> None:
        """Draw the weights.

        Args:
            dim: features per token, divisible by `heads`.
            heads: attention heads.
            hidden: features inside the MLP.
            init: initialiser of the probe and of every weight.
            activation: form of GELU.
            norm_eps: epsilon of the norm.
            key: randomness of the weights.
        """
        probe_key, query_key, key_value_key, out_key, mlp_key = jax.random.split(key, 5)
        self.probe = init(probe_key, (1, dim))[0]
        self.query = Linear(dim, dim, init, key=query_key)
        self.key_value = Linear(dim, 2 * dim, init, parts=2, key=key_value_key)
        self.out = Linear(dim, dim, init, key=out_key)
        self.norm = LayerNorm(dim, norm_eps)
        self.mlp = MLP(dim, hidden, activation, init, init, key=mlp_key)
        self.heads = heads

    def __call__(self, x: Float[Array, "tokens dim"]) -> Float[Array, " dim"]:
        tokens, dim = x.shape
        query = self.query(self.probe).reshape(1, self.heads, dim // self.heads)
        key_layer, value_layer = self.key_value.split(2)
        key, value = (
            layer(x).reshape(tokens, self.heads, dim // self.heads)
            for layer in (with_still_bias(key_layer), value_layer)
        )
        y = self.out(attend(query, key, value).reshape(dim))
        return y + self.mlp(self.norm(y))


def mean_of_image(x: Float[Array, "tokens dim"], pool: ImagePool, *, class_token: bool) -> Float[Array, " dim"]:
    """Pool image tokens by their mean.

    Args:
        x: tokens, the class token first if there is one.
        pool: mean_all: the mean of all tokens. mean, norm_mean: the mean of patches.
        class_token: whether the first token is a class token.
    """
    skipped = 1 if class_token and pool != "mean_all" else 0
    return jnp.mean(x[skipped:], axis=0, dtype=wide_dtype(x.dtype)).astype(x.dtype)


def read_position(tokens: TokenIds, pool: TextPool, *, pad_id: int, end_id: int) -> Position | None:
    """The one token of a text that a pool reads; None for mean_real, which reads many.

    Args:
        tokens: ids of the text.
        pool: last: the last slot. end: the first `end_id`, or the last slot of a text that was cut before it.
            last_real: the last token that is not padding, or the first slot of a text of padding alone.
        pad_id: id of padding.
        end_id: id that ends a text.
    """
    if pool == "last":
        return tokens.size - 1
    if pool == "end":
        ends = tokens == end_id
        return jnp.where(jnp.any(ends), jnp.argmax(ends), tokens.size - 1)
    if pool == "last_real":
        return jnp.max(jnp.where(tokens != pad_id, jnp.arange(tokens.size), 0))
    return None


def mean_of_text(x: Float[Array, "length dim"], tokens: TokenIds, pad_id: int) -> Float[Array, " dim"]:
    """The mean of the tokens that are not padding; zeros for a text of padding alone.

    Args:
        x: tokens.
        tokens: their ids.
        pad_id: id of padding.
    """
    real, wide = tokens != pad_id, wide_dtype(x.dtype)
    total = jnp.sum(jnp.where(real[:, None], x, 0), axis=0, dtype=wide)
    return (total / jnp.maximum(jnp.sum(real, dtype=wide), 1)).astype(x.dtype)
