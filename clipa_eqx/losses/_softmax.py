"""CLIP's loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar
from ._columns import around_ring, check_form, gather, logit_gradients, over_tiles, part, PerRow, Span, with_part


_Sums = tuple[Float[Array, " rows"], Float[Array, " columns"]]
_Saved = tuple[PerRow, Array, _Sums]


def softmax_contrastive(
    image_embed: Float[Array, "batch embed"],
    text_embed: Float[Array, "batch embed"],
    logit_scale: Scalar,
    *,
    axis_name: str | None = None,
    tile: int | None = None,
    ring: bool = False,
) -> Scalar:
    """Cross-entropy of finding each pair's partner in the batch, the mean of both directions.

    With the logits `l[i, j] = exp(logit_scale) * image[i] @ text[j]` the loss is the mean over i of
    `(logsumexp(l[i, :]) + logsumexp(l[:, i])) / 2 - l[i, i]`. Each logit is computed once for both directions.

    With an `axis_name`, inside `jax.shard_map`, it is the mean over this device's pairs, among the pairs of all
    devices. It varies over the axis; its `jax.lax.pmean` is the loss of the whole batch, and differentiating that
    mean inside the mapped function gives the gradient of the whole batch. Between devices go the texts once and their
    gradients once, and one number per text.

    With a `tile` the backward pass keeps the embeddings and two numbers per pair, and computes the logits again.

    Source: CLIP (Radford et al., arXiv 2103.00020, figure 3). The form per device is what open_clip calls local loss
    with gradient through the gather; the sum over tiles is the one of FlashAttention (Dao et al., arXiv 2205.14135),
    and its use for this loss is Inf-CL's (Cheng et al., arXiv 2410.17243), whose tiles lie on a ring as well.

    Args:
        image_embed: unit vectors; row i belongs to text i.
        text_embed: unit vectors.
        logit_scale: natural logarithm of the inverse temperature.
        axis_name: mesh axis over which the batch is spread; None: the arguments are the whole batch.
        tile: columns of the logit matrix held at once, at least 1; None: all.
        ring: pass the texts from device to device instead of gathering them. Each device then holds the texts of one
            other device, not of all, and sends them once more in the backward pass.

    Returns:
        The loss, float32.

    Raises:
        ValueError: a tile below 1, or a ring without an axis.
    """
    check_form(axis_name, tile, ring=ring)
    texts = text_embed.astype(jnp.float32)
    images = PerRow.make(image_embed.astype(jnp.float32), logit_scale)
    if ring:
        over_texts, over_images = _tiled_sums(images, texts, tile, axis_name)
    else:
        columns = gather(texts, axis_name)
        over_texts, over_images = (
            _plain_sums(images, columns) if tile is None else _tiled_sums(images, columns, tile, None)
        )
        if axis_name is not None:
            over_images = _combined(over_images, axis_name)
    return jnp.mean((over_texts + over_images) / 2 - images.own_logits(texts))


def _combined(parts: Float[Array, " columns"], axis_name: str) -> Float[Array, " rows"]:
    """The log-sum-exp of each device's own columns, of the parts that all devices have of all columns."""
    largest = jax.lax.pmax(jax.lax.stop_gradient(parts), axis_name)
    total = jax.lax.psum_scatter(jnp.exp(parts - largest), axis_name, tiled=True)
    first = jax.lax.axis_index(axis_name) * total.shape[0]
    return jnp.log(total) + part(largest, (first, total.shape[0]))


def _plain_sums(rows: PerRow, columns: Float[Array, "columns embed"]) -> _Sums:
    """Log-sum-exp of the logits of each row and of each column; the whole matrix is kept for the backward pass."""
    logits = rows.logits(columns)
    return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)


def _sums_in_tiles(
    rows: PerRow, columns: Float[Array, "columns embed"], tile: int | None, ring_axis: str | None
) -> _Sums:
    """The same in tiles. On a ring: of each row over all devices' columns, of each own column over all rows."""

    def visit(over_columns: Array, block: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        columns, over_rows = block

        def add_tile(across: Span, down: Span, sums: _Sums) -> _Sums:
            over_columns, over_rows = sums
            logits = rows.part(across).logits(part(columns, down))
            of_rows = jnp.logaddexp(part(over_columns, across), jax.nn.logsumexp(logits, axis=1))
            of_columns = jnp.logaddexp(part(over_rows, down), jax.nn.logsumexp(logits, axis=0))
            return with_part(over_columns, across, of_rows), with_part(over_rows, down, of_columns)

        sums = (over_columns, over_rows)
        over_columns, over_rows = over_tiles(add_tile, sums, len(rows.embed), len(columns), tile)
        return over_columns, (columns, over_rows)

    # The log-sum-exp of nothing.
    none_of_rows, none_of_block = jnp.full_like(rows.bias, -jnp.inf), jnp.full_like(columns[:, 0], -jnp.inf)
    over_columns, (_, over_rows) = around_ring(visit, none_of_rows, (columns, none_of_block), ring_axis)
    return over_columns, over_rows


def _forward(rows: PerRow, columns: Array, tile: int | None, ring_axis: str | None) -> tuple[_Sums, _Saved]:
    sums = _sums_in_tiles(rows, columns, tile, ring_axis)
    return sums, (rows, columns, sums)


def _backward(tile: int | None, ring_axis: str | None, saved: _Saved, gradients: _Sums) -> tuple[PerRow, Array]:
    rows, columns, (over_columns, over_rows) = saved
    row_gradient, column_gradient = gradients

    def slope(logits: Array, row_sum: Array, row_gradient: Array, column_sum: Array, column_gradient: Array) -> Array:
        of_rows = row_gradient[:, None] * jnp.exp(logits - row_sum[:, None])
        return of_rows + column_gradient[None] * jnp.exp(logits - column_sum[None])

    return logit_gradients(
        slope,
        rows,
        columns,
        (over_columns, row_gradient),
        (over_rows, column_gradient),
        tile=tile,
        ring_axis=ring_axis,
    )


_tiled_sums = jax.custom_vjp(_sums_in_tiles, nondiff_argnums=(2, 3))
_tiled_sums.defvjp(_forward, _backward)
