"""Blocks with stacked arrays, and the ways to run them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Key, Position
from ..config import Layers, Remat
from ._block import Block
from ._form import Form, layers_for


class Split(NamedTuple):
    """How the arrays of a stack are spread over devices, inside `jax.shard_map`."""

    axis_name: str
    """The mesh axis."""
    axes: tuple[int | None, ...]
    """For each array of a block, in the order of its tree, the axis of which each device holds a part; None: whole."""


_Layers = tuple[Block, Array | None]
"""Blocks, and what their branches are multiplied by."""


class Stack(eqx.Module):
    """A run of equal blocks.

    The arrays of all blocks are stacked, so few of them cross the border of a jitted call. How the blocks run
    and what the backward pass recomputes changes neither values nor gradients, beyond rounding.
    """

    blocks: Block
    """Blocks with a leading axis over depth."""
    drop_path: float = eqx.field(static=True)
    """Chance to skip a branch in the last block, rising linearly from 0 in the first."""
    layers: Layers = eqx.field(static=True, default="auto")
    """scan: one body for all blocks, which compiles faster and needs less memory. unroll: each block written out, which
    saves the copies into and out of the stacks. auto: as `layers_for` has it for JAX's default device."""
    remat: Remat = eqx.field(static=True, default="none")
    """What the backward pass recomputes beyond norms and activations: none, full (all of a block), dots (all but matrix
    products), dots_no_batch (all but products with weights)."""
    split: Split | None = eqx.field(static=True, default=None)
    """Set where each device holds a part of the arrays: a block is gathered when it runs, and again in the backward
    pass (ZeRO stage 3, Rajbhandari et al., arXiv 1910.02054)."""
    form: Form = eqx.field(static=True, default=Form())
    """How each block is computed."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        # Asked of any array, since layers of another kind may stand in for those of this package.
        return jax.tree.leaves(self.blocks)[0].shape[0]

    def __call__(
        self,
        x: Float[Array, "tokens dim"],
        mask: Bool[Array, "tokens tokens"] | None = None,
        *,
        key: Key | None = None,
    ) -> Float[Array, "tokens dim"]:
        """Run one example through all blocks.

        Args:
            x: tokens.
            mask: which token (row) sees which (column); none: all see all.
            key: randomness of stochastic depth; none: no branch is skipped.
        """
        layers = self._layers(x, key)
        if not self._scans():
            return self._written_out(_unstacked(layers), x, mask)
        body = self._rematerialized(self._body(mask), in_scan=True)
        return jax.lax.scan(lambda x, layer: (body(x, layer), None), x, layers)[0]

    def one(
        self,
        x: Float[Array, "tokens dim"],
        at: Position,
        mask: Bool[Array, "tokens tokens"] | None = None,
        *,
        key: Key | None = None,
    ) -> Float[Array, " dim"]:
        """The token at one position as a whole call returns it; for less, where blocks are written out: the last one
        computes no other.

        Args:
            x: tokens.
            at: position of the token.
            mask: as in a whole call.
            key: as in a whole call.
        """
        if self._scans():
            # The last block taken out of the stack would cost a copy of all other weights, and of their gradients.
            return self(x, mask, key=key)[at]
        *before, last = _unstacked(self._layers(x, key))
        x = self._written_out(before, x, mask)

        def body(x: Array, layer: _Layers) -> Array:
            block, branch_factors = layer
            return _gathered(block, self.split).one(x, at, mask, branch_factors, self.form)

        return self._rematerialized(body, in_scan=False)(x, last)

    def _layers(self, x: Array, key: Key | None) -> _Layers:
        factors = None
        if self.drop_path and key is not None:
            factors = _branch_factors(self.depth, self.drop_path, key=key).astype(x.dtype)
        return self.blocks, factors

    def _body(self, mask: Array | None) -> Callable[..., Array]:
        def body(x: Array, layer: _Layers) -> Array:
            block, branch_factors = layer
            return _gathered(block, self.split)(x, mask, branch_factors, self.form)

        return body

    def _written_out(self, layers: list[_Layers], x: Array, mask: Array | None) -> Array:
        body = self._rematerialized(self._body(mask), in_scan=False)
        for layer in layers:
            x = body(x, layer)
        return x

    def _scans(self) -> bool:
        if self.layers == "auto":
            return layers_for(jax.default_backend(), self.depth, steps=None) == "scan"
        return self.layers == "scan"

    def _rematerialized(self, body: Callable[..., Array], *, in_scan: bool) -> Callable[..., Array]:
        remat = "dots_no_batch" if self.remat == "none" and self.form.keep_products and in_scan else self.remat
        if remat == "none" and self.split is None:
            return body
        policy = {
            # Gathered weights, were they kept for the backward pass, would be the whole stack on each device.
            "none": lambda primitive, *_, **__: primitive.name != "all_gather",
            "full": None,
            "dots": jax.checkpoint_policies.dots_saveable,
            "dots_no_batch": _is_product,
        }[remat]
        # The body of a scan is compiled apart from its backward pass, so nothing there could undo the recomputation.
        return jax.checkpoint(body, policy=policy, prevent_cse=not in_scan)


def _is_product(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """Products with weights, and what a fused kernel of attention reads again in its backward pass."""
    if "dot_product_attention" in primitive.name:
        return True
    return bool(jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **parameters))


def _gathered(block: Block, split: Split | None) -> Block:
    if split is None:
        return block
    leaves, structure = jax.tree.flatten(block)
    whole = [
        leaf if axis is None else jax.lax.all_gather(leaf, split.axis_name, axis=axis, tiled=True)
        for leaf, axis in zip(leaves, split.axes, strict=True)
    ]
    return structure.unflatten(whole)


# One split per array, because its transpose is one concatenation; indexing block by block would build the stacked
# gradient as a sum of padded arrays.
def _unstacked(tree: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(tree)
    blocks = zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True)
    return [structure.unflatten(block) for block in blocks]


def _branch_factors(depth: int, drop_path: float, *, key: Key) -> Float[Array, "depth 2"]:
    """Per block and branch: 0 with the block's chance, else the inverse of the chance to stay."""
    stay = 1.0 - jnp.linspace(0.0, drop_path, depth)[:, None]
    return jax.random.bernoulli(key, stay, (depth, 2)).astype(stay.dtype) / stay
