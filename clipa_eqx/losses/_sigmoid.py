"""SigLIP's loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar
from ._columns import around_ring, check_form, gather, logit_gradients, over_tiles, part, PerRow, Span, with_part


_Saved = tuple[PerRow, Array]


def sigmoid_contrastive(
    image_embed: Float[Array, "batch embed"],
    text_embed: Float[Array, "batch embed"],
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    axis_name: str | None = None,
    tile: int | None = None,
    ring: bool = False,
) -> Scalar:
    """Logistic loss of telling the pairs of the batch from all other combinations, summed per image.

    With the logits `l[i, j] = exp(logit_scale) * image[i] @ text[j] + logit_bias` the loss is the mean over i of
    `-sum_j log(sigmoid(z[i, j] * l[i, j]))`, where z is 1 for a pair and -1 otherwise. It is computed as
    `sum_j softplus(l[i, j]) - l[i, i]`, which is the same.

    With an `axis_name`, inside `jax.shard_map`, it is the mean over this device's images against the texts of all
    devices; see `softmax_contrastive`. With a `tile` the backward pass keeps the embeddings alone, and computes the
    logits again.

    Source: SigLIP (Zhai et al., arXiv 2303.15343, equation 1; the ring is its section 3.3).

    Args:
        image_embed: unit vectors; row i belongs to text i.
        text_embed: unit vectors.
        logit_scale: natural logarithm of the inverse temperature.
        logit_bias: added to every logit; SigLIP starts it at -10.
        axis_name: mesh axis over which the batch is spread; None: the arguments are the whole batch.
        tile: columns of the logit matrix held at once, at least 1; None: all.
        ring: pass the texts from device to device instead of gathering them; see `softmax_contrastive`.

    Returns:
        The loss, float32.

    Raises:
        ValueError: a tile below 1, or a ring without an axis.
    """
    check_form(axis_name, tile, ring=ring)
    texts = text_embed.astype(jnp.float32)
    images = PerRow.make(image_embed.astype(jnp.float32), logit_scale, logit_bias)
    if ring:
        over_texts = _tiled_sum(images, texts, tile, axis_name)
    else:
        columns = gather(texts, axis_name)
        over_texts = _plain_sum(images, columns) if tile is None else _tiled_sum(images, columns, tile, None)
    return jnp.mean(over_texts - images.own_logits(texts))


def _plain_sum(rows: PerRow, columns: Float[Array, "columns embed"]) -> Float[Array, " rows"]:
    """Sum of softplus over the logits of each row; the whole matrix is kept for the backward pass."""
    return jax.nn.softplus(rows.logits(columns)).sum(axis=1)


def _sum_in_tiles(
    rows: PerRow, columns: Float[Array, "columns embed"], tile: int | None, ring_axis: str | None
) -> Float[Array, " rows"]:
    """The same in tiles, on a ring over the columns of all devices."""

    def visit(total: Array, columns: Array) -> tuple[Array, Array]:
        def add_tile(across: Span, down: Span, total: Array) -> Array:
            of_tile = _plain_sum(rows.part(across), part(columns, down))
            return with_part(total, across, part(total, across) + of_tile)

        return over_tiles(add_tile, total, len(rows.embed), len(columns), tile), columns

    return around_ring(visit, jnp.zeros_like(rows.bias), columns, ring_axis)[0]


def _forward(rows: PerRow, columns: Array, tile: int | None, ring_axis: str | None) -> tuple[Array, _Saved]:
    return _sum_in_tiles(rows, columns, tile, ring_axis), (rows, columns)


def _backward(tile: int | None, ring_axis: str | None, saved: _Saved, gradient: Array) -> tuple[PerRow, Array]:
    slope = lambda logits, gradient: gradient[:, None] * jax.nn.sigmoid(logits)
    return logit_gradients(slope, *saved, (gradient,), tile=tile, ring_axis=ring_axis)


_tiled_sum = jax.custom_vjp(_sum_in_tiles, nondiff_argnums=(2, 3))
_tiled_sum.defvjp(_forward, _backward)
