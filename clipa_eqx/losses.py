"""Contrastive losses over a batch of image-text pairs: whole, spread over devices, tiled, or both.

Each loss takes, for every row of the logit matrix, a reduction over all columns less the logit of the row's own pair.
That form needs no labels: spread over devices, each device holds its own rows and gathers the columns; tiled, it holds
one tile of columns at a time and computes that again in the backward pass. Value and gradient are the same in every
form. Embeddings are raised to float32 first, so that sums over tiles and devices do not round to a narrower type.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import check_at_least
from ._types import Scalar


def softmax_contrastive(
    image_embed: Float[Array, "batch embed"],
    text_embed: Float[Array, "batch embed"],
    logit_scale: Scalar,
    *,
    axis_name: str | None = None,
    tile: int | None = None,
) -> Scalar:
    """Cross-entropy of finding each pair's partner in the batch, the mean of both directions.

    With the logits `l[i, j] = exp(logit_scale) * image[i] @ text[j]` the loss is the mean over i of
    `(logsumexp(l[i, :]) + logsumexp(l[:, i])) / 2 - l[i, i]`.

    With an `axis_name`, inside `jax.shard_map`, it is the mean over this device's rows against the columns of all
    devices. It varies over the axis; its `jax.lax.pmean` is the loss of the whole batch, and differentiating that
    mean inside the mapped function gives the gradient of the whole batch.

    Source: CLIP (Radford et al., arXiv 2103.00020, figure 3). The form per device is what open_clip calls local loss
    with gradient through the gather.

    Args:
        image_embed: unit vectors; row i belongs to text i.
        text_embed: unit vectors.
        logit_scale: natural logarithm of the inverse temperature.
        axis_name: mesh axis over which the batch is spread; None: the arguments are the whole batch.
        tile: columns of the logit matrix held at once, at least 1; None: all.

    Returns:
        The loss, float32.

    Raises:
        ValueError: a tile below 1.
    """
    image_embed, text_embed = image_embed.astype(jnp.float32), text_embed.astype(jnp.float32)
    scale = jnp.exp(logit_scale.astype(jnp.float32))

    def log_sum(rows: Float[Array, "rows embed"], columns: Float[Array, "columns embed"]) -> Float[Array, " rows"]:
        logits_to_part = lambda columns: jax.nn.logsumexp(scale * (rows @ columns.T), axis=1)
        return _over_tiles(logits_to_part, jax.nn.logsumexp, columns, tile)

    image_to_text = log_sum(image_embed, _gather(text_embed, axis_name))
    text_to_image = log_sum(text_embed, _gather(image_embed, axis_name))
    own_logit = scale * jnp.sum(image_embed * text_embed, axis=1)
    return jnp.mean((image_to_text + text_to_image) / 2 - own_logit)


def sigmoid_contrastive(
    image_embed: Float[Array, "batch embed"],
    text_embed: Float[Array, "batch embed"],
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    axis_name: str | None = None,
    tile: int | None = None,
) -> Scalar:
    """Logistic loss of telling the pairs of the batch from all other combinations, summed per image.

    With the logits `l[i, j] = exp(logit_scale) * image[i] @ text[j] + logit_bias` the loss is the mean over i of
    `-sum_j log(sigmoid(z[i, j] * l[i, j]))`, where z is 1 for a pair and -1 otherwise. It is computed as
    `sum_j softplus(l[i, j]) - l[i, i]`, which is the same.

    With an `axis_name`, inside `jax.shard_map`, it is the mean over this device's images against the texts of all
    devices; see `softmax_contrastive`.

    Source: SigLIP (Zhai et al., arXiv 2303.15343, equation 1).

    Args:
        image_embed: unit vectors; row i belongs to text i.
        text_embed: unit vectors.
        logit_scale: natural logarithm of the inverse temperature.
        logit_bias: added to every logit; SigLIP starts it at -10.
        axis_name: mesh axis over which the batch is spread; None: the arguments are the whole batch.
        tile: columns of the logit matrix held at once, at least 1; None: all.

    Returns:
        The loss, float32.

    Raises:
        ValueError: a tile below 1.
    """
    image_embed, text_embed = image_embed.astype(jnp.float32), text_embed.astype(jnp.float32)
    scale, bias = jnp.exp(logit_scale.astype(jnp.float32)), logit_bias.astype(jnp.float32)

    softplus_sum = lambda texts: jax.nn.softplus(scale * (image_embed @ texts.T) + bias).sum(axis=1)
    over_texts = _over_tiles(softplus_sum, jnp.sum, _gather(text_embed, axis_name), tile)
    own_logit = scale * jnp.sum(image_embed * text_embed, axis=1) + bias
    return jnp.mean(over_texts - own_logit)


def contrastive_accuracy(
    image_embed: Float[Array, "batch embed"],
    text_embed: Float[Array, "batch embed"],
    *,
    axis_name: str | None = None,
    tile: int | None = None,
) -> Scalar:
    """Share of images whose most similar text in the batch is their own; of equal texts the first one counts.

    With an `axis_name`, inside `jax.shard_map`, it is the share of this device's images among the texts of all
    devices; the caller takes the mean over the axis.

    Args:
        image_embed: unit vectors; row i belongs to text i.
        text_embed: unit vectors.
        axis_name: mesh axis over which the batch is spread; None: the arguments are the whole batch.
        tile: images compared at once, at least 1; None: all.

    Returns:
        A share in 0 to 1, float32.

    Raises:
        ValueError: a tile below 1.
    """
    _check_tile(tile)
    batch = image_embed.shape[0]
    texts = _gather(text_embed, axis_name).astype(jnp.float32)
    nearest = jax.lax.map(
        lambda image: jnp.argmax(texts @ image), image_embed.astype(jnp.float32), batch_size=tile or batch
    )
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    return jnp.mean(nearest == first + jnp.arange(batch), dtype=jnp.float32)


def clamp_logit_scale(logit_scale: Scalar, maximum: float) -> Scalar:
    """The logit scale after an update, moved back to where the inverse temperature lies in 1 to `maximum`.

    CLIP and open_clip do so with 100 after every step; CLIPA-JAX leaves it free.

    Args:
        logit_scale: natural logarithm of the inverse temperature.
        maximum: largest inverse temperature, at least 1.

    Returns:
        The logit scale in 0 to ln(maximum).

    Raises:
        ValueError: a maximum below 1.
    """
    check_at_least("largest inverse temperature", maximum, 1.0)
    return jnp.clip(logit_scale, 0, math.log(maximum))


def _gather(embed: Float[Array, "batch embed"], axis_name: str | None) -> Float[Array, "columns embed"]:
    """The rows of all devices along the axis, in its order."""
    return embed if axis_name is None else jax.lax.all_gather(embed, axis_name, tiled=True)


def _over_tiles(
    reduce_tile: Callable[..., Float[Array, " rows"]],
    combine: Callable[..., Float[Array, " rows"]],
    columns: Float[Array, "columns embed"],
    tile: int | None,
) -> Float[Array, " rows"]:
    """Reduce the logits over all columns, of which at most `tile` are held at once, forward and backward.

    Args:
        reduce_tile: from some columns to one value per row.
        combine: from stacked values to one per row, given `axis`.
        columns: the embeddings to go through.
        tile: columns at once; the last tile may have fewer. None: all.
    """
    _check_tile(tile)
    num_columns, embed = columns.shape
    if tile is None or tile >= num_columns:
        return reduce_tile(columns)
    # The backward pass keeps one number per row and tile, and computes the logits of a tile again.
    reduce_tile = jax.checkpoint(reduce_tile)
    num_tiles, rest = divmod(num_columns, tile)
    parts = jax.lax.map(reduce_tile, columns[: num_tiles * tile].reshape(num_tiles, tile, embed))
    if rest:
        parts = jnp.concatenate([parts, reduce_tile(columns[-rest:])[None]])
    return combine(parts, axis=0)


def _check_tile(tile: int | None) -> None:
    if tile is not None:
        check_at_least("tile", tile, 1)
