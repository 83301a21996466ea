"""Multi-head attention over the tokens of one example."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Key, Position
from ._layers import Initializer, Linear, wide_dtype


def attend(
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    value: Float[Array, "keys heads head_dim"],
    mask: Bool[Array, "queries keys"] | None = None,
) -> Float[Array, "queries heads head_dim"]:
    """Scaled dot-product attention (Vaswani et al., arXiv 1706.03762), softmax in at least float32.

    Plain XLA: after token reduction the sequences are short, and so is the matrix of weights.

    Args:
        query: what asks.
        key: what is asked.
        value: what is read.
        mask: where it is false, the query does not see the key. A query that sees no key reads the mean of all.

    Returns:
        What each query reads, per head.
    """
    wide = wide_dtype(query.dtype)
    logits = jnp.einsum("qhd,khd->hqk", query * query.shape[-1] ** -0.5, key, preferred_element_type=wide)
    if mask is not None:
        logits = jnp.where(mask[None], logits, jnp.finfo(wide).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("hqk,khd->qhd", weights, value)


class Attention(eqx.Module):
    """Self-attention: one fused projection to queries, keys and values, then one out of the heads.

    The columns of `qkv` are queries, keys, values, each of them head by head.
    """

    qkv: Linear
    out: Linear
    heads: int = eqx.field(static=True)

    def __init__(
        self, dim: int, heads: int, init: Initializer, out_init: Initializer, *, stack: tuple[int, ...] = (), key: Key
    ) -> None:
        """Draw the weights.

        Args:
            dim: features per token, divisible by `heads`.
            heads: attention heads.
            init: initialiser of the query, key and value weights, each drawn as a matrix of its own.
            out_init: initialiser of the output weight.
            stack: leading axes, for equal layers whose arrays are stored together.
            key: randomness of the weights.
        """
        qkv_key, out_key = jax.random.split(key)
        self.qkv = Linear(dim, 3 * dim, init, parts=3, stack=stack, key=qkv_key)
        self.out = Linear(dim, dim, out_init, stack=stack, key=out_key)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "tokens dim"], mask: Bool[Array, "tokens tokens"] | None = None
    ) -> Float[Array, "tokens dim"]:
        tokens, dim = x.shape
        qkv = with_still_bias(self.qkv, slice(dim, 2 * dim))(x)
        query, key, value = jnp.split(qkv.reshape(tokens, 3 * self.heads, dim // self.heads), 3, axis=1)
        return self.out(attend(query, key, value, mask).reshape(tokens, dim))

    def one(
        self, x: Float[Array, "tokens dim"], at: Position, mask: Bool[Array, "tokens tokens"] | None = None
    ) -> Float[Array, " dim"]:
        """What the token at one position reads; the same as that row of a whole call, without the other queries."""
        tokens, dim = x.shape
        qkv = with_still_bias(self.qkv, slice(dim, 2 * dim))
        query_part, key_value_part = _columns(qkv, dim)
        query = query_part(x[at]).reshape(1, self.heads, dim // self.heads)
        key, value = jnp.split(key_value_part(x).reshape(tokens, 2 * self.heads, dim // self.heads), 2, axis=1)
        read = attend(query, key, value, None if mask is None else mask[at][None])
        return self.out(read.reshape(dim))


def _columns(linear: Linear, at: int) -> tuple[Linear, Linear]:
    """A layer taken apart into those of the outputs before and from `at`."""
    weights = jnp.split(linear.weight, [at], axis=-1)
    biases = (None, None) if linear.bias is None else jnp.split(linear.bias, [at])
    parts = zip(weights, biases, strict=True)
    fields = lambda layer: (layer.weight, layer.bias)
    first, second = (eqx.tree_at(fields, linear, part, is_leaf=lambda leaf: leaf is None) for part in parts)
    return first, second


def with_still_bias(linear: Linear, keys: slice) -> Linear:
    """The same layer with no gradient to the bias of the keys.

    That bias adds the same number to all logits of a query, which softmax takes out again, so its gradient is zero.
    What is computed of it is rounding noise, which Adam would scale up to whole steps that differ on every machine.
    """
    if linear.bias is None:
        return linear
    still = linear.bias.at[keys].set(jax.lax.stop_gradient(linear.bias[keys]))
    return eqx.tree_at(lambda layer: layer.bias, linear, still)
