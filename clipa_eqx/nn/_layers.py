"""Linear layers and layer norms whose arrays may be stacked over the blocks of a tower."""

import math
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._types import Key


Initializer = Callable[[Key, tuple[int, ...]], Array]
"""Draws an array of a shape whose last two axes are inputs and outputs."""


def xavier_uniform(key: Key, shape: tuple[int, ...]) -> Float[Array, "*stack inputs outputs"]:
    """Uniform within `sqrt(6 / (inputs + outputs))` (Glorot & Bengio 2010), whatever the leading axes."""
    bound = math.sqrt(6 / (shape[-2] + shape[-1]))
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


class Linear(eqx.Module):
    """`x @ weight + bias` over the last axis.

    The weight is stored input first, so that a row of tokens times the weight is one matrix product without a
    transposition, in the forward pass and in both products of the backward pass.
    """

    weight: Float[Array, "*stack inputs outputs"]
    bias: Float[Array, "*stack outputs"] | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        init: Initializer,
        *,
        use_bias: bool = True,
        parts: int = 1,
        stack: tuple[int, ...] = (),
        key: Key,
    ) -> None:
        """Draw the weight and set the bias to zero.

        Args:
            inputs: features that come in.
            outputs: features that go out.
            init: initialiser of the weight.
            use_bias: whether there is a bias.
            parts: matrices side by side in the weight, each drawn by its own size.
            stack: leading axes, for equal layers whose arrays are stored together.
            key: randomness of the weight.
        """
        weights = init(key, (*stack, parts, inputs, outputs // parts))
        self.weight = jnp.moveaxis(weights, -3, -2).reshape(*stack, inputs, outputs)
        self.bias = jnp.zeros((*stack, outputs)) if use_bias else None

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        y = x @ self.weight
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)

    def split(self, parts: int) -> "tuple[Linear, ...]":
        """Layers whose outputs side by side are those of this one, each as wide as the others.

        Args:
            parts: how many; divides the outputs.
        """
        weights = jnp.split(self.weight, parts, axis=-1)
        biases = [None] * parts if self.bias is None else jnp.split(self.bias, parts, axis=-1)
        fields = lambda layer: (layer.weight, layer.bias)
        absent = lambda leaf: leaf is None
        return tuple(eqx.tree_at(fields, self, part, is_leaf=absent) for part in zip(weights, biases, strict=True))


class LayerNorm(eqx.Module):
    """Layer norm over the last axis (Ba et al., arXiv 1607.06450), with scale and bias.

    It is computed in at least float32; the result has the type of the input.
    """

    scale: Float[Array, "*stack dim"] | None
    """None: 1, and no bias either."""
    bias: Float[Array, "*stack dim"] | None
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float, *, stack: tuple[int, ...] = ()) -> None:
        """Start as the plain norm: scale one, bias zero.

        Args:
            dim: features.
            eps: added to the variance.
            stack: leading axes, for equal layers whose arrays are stored together.
        """
        self.scale = jnp.ones((*stack, dim))
        self.bias = jnp.zeros((*stack, dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
        return _normalized(x, self.scale, self.bias, self.eps)


# The backward pass recomputes what lies between input and output from the input. A scanned body would otherwise store
# every such intermediate of every block: with the same measure for GELU, that is half of a step's memory.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _normalized(
    x: Float[Array, "*rows dim"], scale: Float[Array, " dim"] | None, bias: Float[Array, " dim"] | None, eps: float
) -> Float[Array, "*rows dim"]:
    wide = x.astype(wide_dtype(x.dtype))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    plain = centred * jax.lax.rsqrt(variance + eps)
    if scale is None or bias is None:
        return plain.astype(x.dtype)
    scale, bias = (jnp.broadcast_to(array, x.shape).astype(wide.dtype) for array in (scale, bias))
    return (plain * scale + bias).astype(x.dtype)


def fold_norm(norm: LayerNorm, layer: Linear) -> tuple[LayerNorm, Linear]:
    """A norm and the layer that reads it, with the norm's scale and bias moved into the layer; the same function.

    `(plain * scale + bias) @ weight = plain @ (scale * weight) + bias @ weight`: the gradients of scale and bias then
    come from that of the weight, which is small, where they would be sums over all tokens of the batch.

    Args:
        norm: with scale and bias.
        layer: plain.
    """
    if norm.scale is None or norm.bias is None:
        return norm, layer
    wide, narrow = norm.scale.dtype, layer.weight.dtype
    weight = layer.weight.astype(wide)
    bias = jnp.matmul(norm.bias, weight, precision="highest")
    if layer.bias is not None:
        bias = bias + layer.bias.astype(wide)
    folded = ((norm.scale[:, None] * weight).astype(narrow), bias.astype(narrow))
    layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, folded, is_leaf=lambda leaf: leaf is None)
    return eqx.tree_at(lambda norm: (norm.scale, norm.bias), norm, (None, None)), layer


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The type for sums over many numbers: float32 for narrower types, wider types as they are."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)
