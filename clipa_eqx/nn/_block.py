"""The transformer block."""

from functools import partial, reduce
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Key, Position
from ..config import Activation
from ._attention import Attention
from ._form import Form
from ._layers import fold_norm, Initializer, LayerNorm, Linear, wide_dtype


# Numerator and denominator of erf(x) / x in x^2, highest power first, and where float32 has reached 1.
_ERF_SATURATES = 3.832506856900711
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


# Recomputed in the backward pass, for the reason given at the layer norm.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def activate(x: Float[Array, "*rows hidden"], activation: Activation) -> Float[Array, "*rows hidden"]:
    """GELU (Hendrycks & Gimpel, arXiv 1606.08415): exact, with tanh, or as `x * sigmoid(1.702 x)`."""
    if activation == "gelu_quick":
        return x * jax.nn.sigmoid(1.702 * x)
    if activation == "gelu" and jax.__version_info__ >= (0, 12):
        return 0.5 * x * (1.0 + _erf(x * 0.5**0.5))
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")


def _erf(x: Float[Array, "*rows hidden"]) -> Float[Array, "*rows hidden"]:
    """The error function.

    From jax 0.12 on `jax.lax.erf` cannot run inside `shard_map`: its polynomial does not accept values that vary over
    devices. There float32 uses the rational approximation that earlier versions compile erf to (error 3.1e-7).
    """
    wide = jnp.clip(x.astype(wide_dtype(x.dtype)), -_ERF_SATURATES, _ERF_SATURATES)
    square = wide * wide
    top, bottom = (reduce(lambda sum, c: sum * square + c, rest, first) for first, *rest in (_ERF_P, _ERF_Q))
    return (wide * top / bottom).astype(x.dtype)


class MLP(eqx.Module):
    """Widen, activate, narrow."""

    widen: Linear
    narrow: Linear
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Activation,
        init: Initializer,
        out_init: Initializer,
        *,
        stack: tuple[int, ...] = (),
        key: Key,
    ) -> None:
        """Draw the weights.

        Args:
            dim: features per token.
            hidden: features in between.
            activation: form of GELU.
            init: initialiser of the widening weight.
            out_init: initialiser of the narrowing weight.
            stack: leading axes, for equal layers whose arrays are stored together.
            key: randomness of the weights.
        """
        widen_key, narrow_key = jax.random.split(key)
        self.widen = Linear(dim, hidden, init, stack=stack, key=widen_key)
        self.narrow = Linear(hidden, dim, out_init, stack=stack, key=narrow_key)
        self.activation = activation

    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
        return self.narrow(activate(self.widen(x), self.activation))


class BlockInit(NamedTuple):
    """Initialisers of the four weights of a block."""

    qkv: Initializer
    out: Initializer
    widen: Initializer
    narrow: Initializer


class Block(eqx.Module):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    attention_norm: LayerNorm
    attention: Attention
    attention_scale: Float[Array, "*stack dim"] | None
    mlp_norm: LayerNorm
    mlp: MLP
    mlp_scale: Float[Array, "*stack dim"] | None

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        init: BlockInit,
        *,
        activation: Activation,
        norm_eps: float,
        layer_scale: float = 0.0,
        stack: tuple[int, ...] = (),
        key: Key,
    ) -> None:
        """Draw the weights.

        Args:
            dim: features per token, divisible by `heads`.
            heads: attention heads.
            hidden: features inside the MLP.
            init: initialisers of the weights.
            activation: form of GELU.
            norm_eps: epsilon of both norms.
            layer_scale: first value of a learned scale on both branches (Touvron et al., arXiv 2103.17239); 0: none.
            stack: leading axes, for equal blocks whose arrays are stored together.
            key: randomness of the weights.
        """
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = LayerNorm(dim, norm_eps, stack=stack)
        self.attention = Attention(dim, heads, init.qkv, init.out, stack=stack, key=attention_key)
        self.attention_scale = jnp.full((*stack, dim), layer_scale) if layer_scale else None
        self.mlp_norm = LayerNorm(dim, norm_eps, stack=stack)
        self.mlp = MLP(dim, hidden, activation, init.widen, init.narrow, stack=stack, key=mlp_key)
        self.mlp_scale = jnp.full((*stack, dim), layer_scale) if layer_scale else None

    def __call__(
        self,
        x: Float[Array, "tokens dim"],
        mask: Bool[Array, "tokens tokens"] | None = None,
        branch_factors: Float[Array, "2"] | None = None,
        form: Form = Form(),
    ) -> Float[Array, "tokens dim"]:
        """Run one example.

        Args:
            x: tokens.
            mask: which token (row) sees which (column); none: all see all.
            branch_factors: what the attention and the MLP branch are multiplied by, for stochastic depth; none: 1.
            form: how it is computed. Parts of a kind that is not this package's are called as they are.
        """
        norm, attention = _attention_parts(self, form)
        attended = (
            attention(norm(x), mask, kernel=form.attention)
            if type(attention) is Attention
            else attention(norm(x), mask)
        )
        return self._mixed(_added(x, attended, self.attention_scale, branch_factors, 0), branch_factors, form)

    def one(
        self,
        x: Float[Array, "tokens dim"],
        at: Position,
        mask: Bool[Array, "tokens tokens"] | None = None,
        branch_factors: Float[Array, "2"] | None = None,
        form: Form = Form(),
    ) -> Float[Array, " dim"]:
        """The token at one position as a whole call returns it, for less: only its query, its output and its MLP.

        Args:
            x: tokens.
            at: position of the token.
            mask: as in a whole call.
            branch_factors: as in a whole call.
            form: as in a whole call.
        """
        norm, attention = _attention_parts(self, form)
        attended = attention.one(norm(x), at, mask)
        return self._mixed(_added(x[at], attended, self.attention_scale, branch_factors, 0), branch_factors, form)

    def _mixed(
        self, x: Float[Array, "*rows dim"], branch_factors: Float[Array, "2"] | None, form: Form
    ) -> Float[Array, "*rows dim"]:
        norm, mlp = self.mlp_norm, self.mlp
        if form.fold_norms and type(norm) is LayerNorm and type(mlp) is MLP and type(mlp.widen) is Linear:
            norm, widen = fold_norm(norm, mlp.widen)
            mlp = eqx.tree_at(lambda mlp: mlp.widen, mlp, widen)
        return _added(x, mlp(norm(x)), self.mlp_scale, branch_factors, 1)


def _attention_parts(block: Block, form: Form) -> tuple[LayerNorm, Attention]:
    """The norm and the attention that follows it, folded together where the form says so."""
    norm, attention = block.attention_norm, block.attention
    if form.fold_norms and type(norm) is LayerNorm and type(attention) is Attention and type(attention.qkv) is Linear:
        norm, qkv = fold_norm(norm, attention.qkv)
        attention = eqx.tree_at(lambda attention: attention.qkv, attention, qkv)
    return norm, attention


def _added(
    x: Float[Array, "*rows dim"],
    branch: Float[Array, "*rows dim"],
    scale: Float[Array, " dim"] | None,
    branch_factors: Float[Array, "2"] | None,
    place: int,
) -> Float[Array, "*rows dim"]:
    """The residual stream after a branch: its layer scale and its factor of stochastic depth, if there are any."""
    if scale is not None:
        branch = branch * jnp.broadcast_to(scale, branch.shape)
    return x + (branch if branch_factors is None else branch * branch_factors[place])
