"""Multi-head attention over the tokens of one example."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Key, Position
from ._layers import Initializer, Linear, wide_dtype


Kernel = Literal["xla", "cudnn"]
"""What computes attention."""


def attend(
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    value: Float[Array, "keys heads head_dim"],
    mask: Bool[Array, "queries keys"] | None = None,
    *,
    kernel: Kernel = "xla",
) -> Float[Array, "queries heads head_dim"]:
    """Scaled dot-product attention (Vaswani et al., arXiv 1706.03762), softmax in at least float32.

    Args:
        query: what asks.
        key: what is asked.
        value: what is read.
        mask: where it is false, the query does not see the key. A query that sees no key reads the mean of all.
        kernel: xla: plain products, since after token reduction the sequences are short, and so is the matrix of
            weights. cudnn: NVIDIA's fused kernel, where it can: types of 16 bits, no mask.

    Returns:
        What each query reads, per head.
    """
    if kernel == "cudnn" and mask is None and _cudnn_takes(query):
        return _attend_cudnn(query, key, value)
    wide = wide_dtype(query.dtype)
    logits = _products(query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[None], logits, jnp.finfo(wide).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("hqk,khd->qhd", weights, value)


def _cudnn_takes(query: Float[Array, "queries heads head_dim"]) -> bool:
    head_dim = query.shape[-1]
    return query.dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128


def _attend_cudnn(
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    value: Float[Array, "keys heads head_dim"],
) -> Float[Array, "queries heads head_dim"]:
    """NVIDIA's fused kernel. JAX lets it train on even lengths alone, so an odd one gets a token that nobody sees."""
    queries, keys = query.shape[0], key.shape[0]
    if queries % 2 == 0 and keys % 2 == 0:
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    even = lambda x: jnp.pad(x, ((0, x.shape[0] % 2), (0, 0), (0, 0)))
    # A choice between equals: the kernel needs the lengths of each example, and constants have none under `jax.vmap`.
    one = query[0, 0, :1]
    length = lambda count: jnp.where(one == one, jnp.int32(count), jnp.int32(count))
    padded = jax.nn.dot_product_attention(
        even(query),
        even(key),
        even(value),
        query_seq_lengths=length(queries),
        key_value_seq_lengths=length(keys),
        implementation="cudnn",
    )
    return padded[:queries]


@jax.custom_jvp
def _products(
    query: Float[Array, "queries heads head_dim"], key: Float[Array, "keys heads head_dim"]
) -> Float[Array, "heads queries keys"]:
    """Each query times each key, summed and returned in at least float32."""
    return jnp.einsum("qhd,khd->hqk", query, key, preferred_element_type=wide_dtype(query.dtype))


@_products.defjvp
def _products_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # The products have the narrow type here, so that the backward pass rounds the gradient of the logits to it: a chip
    # multiplies two narrow arrays several times faster than a wide one with a narrow one.
    (query, key), (query_tangent, key_tangent) = primals, tangents
    products = _products(query, key)
    tangent = jnp.einsum("qhd,khd->hqk", query_tangent, key) + jnp.einsum("qhd,khd->hqk", query, key_tangent)
    return products, tangent.astype(products.dtype)


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
        self,
        x: Float[Array, "tokens dim"],
        mask: Bool[Array, "tokens tokens"] | None = None,
        *,
        kernel: Kernel = "xla",
    ) -> Float[Array, "tokens dim"]:
        query, key, value = self._heads(x, x)
        return _from_heads(self.out, attend(query, key, value, mask, kernel=kernel))

    def one(
        self, x: Float[Array, "tokens dim"], at: Position, mask: Bool[Array, "tokens tokens"] | None = None
    ) -> Float[Array, " dim"]:
        """What the token at one position reads; the same as that row of a whole call, without the other queries."""
        query, key, value = self._heads(x[at][None], x)
        read = attend(query, key, value, None if mask is None else mask[at][None])
        return _from_heads(self.out, read)[0]

    def _heads(
        self, asking: Float[Array, "queries dim"], x: Float[Array, "tokens dim"]
    ) -> list[Float[Array, "_ heads head_dim"]]:
        """Queries of the tokens that ask, keys and values of all."""
        if type(self.qkv) is Linear:
            # Three products: the gradient of one product's split is a copy of all that it splits.
            query, key, value = self.qkv.split(3)
            layers = ((query, asking), (with_still_bias(key), x), (value, x))
            return [_to_heads(layer, tokens, self.heads) for layer, tokens in layers]
        # A layer of another kind is called as it is.
        query = jnp.split(self.qkv(asking), 3, axis=-1)[0]
        _, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        return [part.reshape(part.shape[0], self.heads, -1) for part in (query, key, value)]


def _to_heads(layer: Linear, x: Float[Array, "tokens dim"], heads: int) -> Float[Array, "tokens heads head_dim"]:
    """A layer's outputs head by head, written as the product's own shape: a TPU would copy a reshaped one."""
    weight = layer.weight.reshape(layer.weight.shape[0], heads, -1)
    y = jnp.einsum("td,dhk->thk", x, weight)
    return y if layer.bias is None else y + jnp.broadcast_to(layer.bias.reshape(heads, -1), y.shape)


def _from_heads(layer: Callable[..., Array], read: Float[Array, "tokens heads head_dim"]) -> Float[Array, "tokens dim"]:
    """A layer of what the heads read, as `_to_heads` writes it."""
    tokens, heads, head_dim = read.shape
    if not isinstance(layer, Linear) or type(layer) is not Linear:
        return layer(read.reshape(tokens, heads * head_dim))
    y = jnp.einsum("thk,hkd->td", read, layer.weight.reshape(heads, head_dim, -1))
    return y if layer.bias is None else y + jnp.broadcast_to(layer.bias, y.shape)


def with_still_bias(linear: Linear) -> Linear:
    """The projection to attention's keys with no gradient to its bias.

    That bias adds the same number to all logits of a query, which softmax takes out again, so its gradient is zero.
    What is computed of it is rounding noise, which Adam would scale up to whole steps that differ on every machine.
    """
    if linear.bias is None:
        return linear
    return eqx.tree_at(lambda layer: layer.bias, linear, jax.lax.stop_gradient(linear.bias))
