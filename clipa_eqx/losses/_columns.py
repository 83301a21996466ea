"""The logits of some rows against many columns: which columns, on how many devices, how many at once.

The columns of a batch that is spread over devices are either gathered, so that every device holds all of them, or they
go around a ring: each device holds one block at a time, and what is summed per column travels with the block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_at_least
from .._types import Scalar


Span = tuple[Any, int]
"""First row or column, and how many."""

# Rows of a tile for each of its columns: wide enough for large matrix products, narrow beside a batch.
_ROWS_PER_COLUMN = 16

_Local = TypeVar("_Local")
_Block = TypeVar("_Block")


def check_form(axis_name: str | None, tile: int | None, *, ring: bool) -> None:
    """Raise ValueError for a tile below 1, or a ring without an axis."""
    if tile is not None:
        check_at_least("tile", tile, 1)
    if ring and axis_name is None:
        raise ValueError("ring=True sends columns along a mesh axis: give its axis_name, or ring=False.")


def gather(embed: Float[Array, "batch embed"], axis_name: str | None) -> Float[Array, "columns embed"]:
    """The rows of all devices along the axis, in its order."""
    return embed if axis_name is None else jax.lax.all_gather(embed, axis_name, tiled=True)


class PerRow(NamedTuple):
    """What a row of the logit matrix has of its own: `logits = exp(log_scale) * embed @ columns.T + bias`.

    Scale and bias stand there once per row. So they vary over the mesh as the rows do, as a custom gradient must
    return them, and autodiff sums their gradients over rows and devices outside.
    """

    embed: Float[Array, "rows embed"]
    log_scale: Float[Array, " rows"]
    bias: Float[Array, " rows"]

    @classmethod
    def make(cls, embed: Float[Array, "rows embed"], log_scale: Scalar, bias: Scalar | None = None) -> "PerRow":
        """The same scale and bias for every row; no bias: 0."""
        ones = jnp.ones_like(embed[:, 0])
        return cls(
            embed, ones * log_scale.astype(embed.dtype), 0 * ones if bias is None else ones * bias.astype(embed.dtype)
        )

    def part(self, span: Span) -> "PerRow":
        """Some of the rows."""
        return PerRow(*(part(array, span) for array in self))

    def logits(self, columns: Float[Array, "columns embed"]) -> Float[Array, "rows columns"]:
        """Against every column."""
        return jnp.exp(self.log_scale)[:, None] * (self.embed @ columns.T) + self.bias[:, None]

    def own_logits(self, columns: Float[Array, "rows embed"]) -> Float[Array, " rows"]:
        """Of each row against the column of its own pair."""
        return jnp.exp(self.log_scale) * jnp.sum(self.embed * columns, axis=1) + self.bias


def over_tiles(
    add_tile: Callable[[Span, Span, _Local], _Local],
    total: _Local,
    num_rows: int,
    num_columns: int,
    tile: int | None,
) -> _Local:
    """Go through a matrix in tiles of `tile` columns and up to 16 times as many rows.

    Args:
        add_tile: from the rows and the columns of a tile, and the total so far, to the next total.
        total: what is added up.
        num_rows: rows of the matrix.
        num_columns: columns of the matrix.
        tile: columns at once; None: the matrix is one tile.
    """
    if tile is None:
        return add_tile((0, num_rows), (0, num_columns), total)
    along_columns = lambda rows, total: _over_spans(functools.partial(add_tile, rows), total, num_columns, tile)
    return _over_spans(along_columns, total, num_rows, _ROWS_PER_COLUMN * tile)


def _over_spans(add: Callable[[Span, _Local], _Local], total: _Local, length: int, at_once: int) -> _Local:
    """Go along one side in spans of `at_once`; the last one is shorter where they do not come out even."""
    whole, rest = divmod(length, at_once)
    if whole == 1:
        total = add((0, at_once), total)
    elif whole:
        total = jax.lax.fori_loop(0, whole, lambda place, total: add((place * at_once, at_once), total), total)
    return add((length - rest, rest), total) if rest else total


def around_ring(
    visit: Callable[[_Local, _Block], tuple[_Local, _Block]], local: _Local, block: _Block, ring_axis: str | None
) -> tuple[_Local, _Block]:
    """Show every device's block to this device, and this device's block to every other; it comes home at the end.

    Args:
        visit: from what stays here and what travels, to both after the visit.
        local: what stays here.
        block: what travels, this device's own first.
        ring_axis: mesh axis of the ring; None: one visit, of the block given.
    """
    if ring_axis is None:
        return visit(local, block)
    size = jax.lax.axis_size(ring_axis)
    next_device = [(place, (place + 1) % size) for place in range(size)]

    def step(_: Any, both: tuple[_Local, _Block]) -> tuple[_Local, _Block]:
        local, block = visit(*both)
        return local, jax.lax.ppermute(block, ring_axis, next_device)

    return jax.lax.fori_loop(0, size, step, (local, block))


def part(array: Array, span: Span) -> Array:
    """The rows of the span."""
    return jax.lax.dynamic_slice_in_dim(array, *span)


def with_part(array: Array, span: Span, rows: Array) -> Array:
    """The array with the rows of the span replaced."""
    return jax.lax.dynamic_update_slice_in_dim(array, rows, span[0], axis=0)


def logit_gradients(
    slope: Callable[..., Float[Array, "rows columns"]],
    rows: PerRow,
    columns: Float[Array, "columns embed"],
    per_row: tuple[Float[Array, " rows"], ...] = (),
    per_column: tuple[Float[Array, " columns"], ...] = (),
    *,
    tile: int | None,
    ring_axis: str | None,
) -> tuple[PerRow, Float[Array, "columns embed"]]:
    """Gradients for what the rows and the columns have; each tile of logits is computed once.

    Args:
        slope: from the logits of a tile, its rows' part of each of `per_row` and its columns' part of each of
            `per_column`, to the gradient of the logits.
        rows: rows of this device.
        columns: embeddings of all columns; on a ring those of this device.
        per_row: further values for each row, which `slope` needs.
        per_column: further values for each column, which `slope` needs.
        tile: see `over_tiles`.
        ring_axis: see `around_ring`.
    """

    def visit(
        local: tuple[Array, Array], block: tuple[Array, Array, tuple[Array, ...]]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array, tuple[Array, ...]]]:
        columns, columns_gradient, per_column = block

        def add_tile(across: Span, down: Span, total: tuple[Array, ...]) -> tuple[Array, ...]:
            embed_gradient, bias_gradient, columns_gradient = total
            some_rows, some_columns = rows.part(across), part(columns, down)
            d_logits = slope(
                some_rows.logits(some_columns),
                *(part(value, across) for value in per_row),
                *(part(value, down) for value in per_column),
            )
            d_product = jnp.exp(some_rows.log_scale)[:, None] * d_logits
            return (
                _add_part(embed_gradient, across, d_product @ some_columns),
                _add_part(bias_gradient, across, d_logits.sum(axis=1)),
                _add_part(columns_gradient, down, d_product.T @ some_rows.embed),
            )

        total = (*local, columns_gradient)
        here = over_tiles(add_tile, total, len(rows.embed), len(columns), tile)
        return (here[0], here[1]), (columns, here[2], per_column)

    local = (jnp.zeros_like(rows.embed), jnp.zeros_like(rows.bias))
    block = (columns, jnp.zeros_like(columns), per_column)
    (embed_gradient, bias_gradient), (_, columns_gradient, _) = around_ring(visit, local, block, ring_axis)
    # A logit without its bias is linear in the row's embedding and in the scale, so one gradient gives the other.
    log_scale_gradient = jnp.sum(embed_gradient * rows.embed, axis=1)
    return PerRow(embed_gradient, log_scale_gradient, bias_gradient), columns_gradient


def _add_part(array: Array, span: Span, rows: Array) -> Array:
    return with_part(array, span, part(array, span) + rows)
