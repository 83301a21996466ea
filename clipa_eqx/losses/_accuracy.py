"""How often the right text is found within the batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar
from ._columns import around_ring, check_form, gather, over_tiles, part, Span, with_part


def contrastive_accuracy(
    image_embed: Float[Array, "batch embed"],
    text_embed: Float[Array, "batch embed"],
    *,
    axis_name: str | None = None,
    tile: int | None = None,
    ring: bool = False,
) -> Scalar:
    """Share of images whose most similar text in the batch is their own; of equal texts the first one counts.

    With an `axis_name`, inside `jax.shard_map`, it is the share of this device's images among the texts of all
    devices; the caller takes the mean over the axis.

    Args:
        image_embed: unit vectors; row i belongs to text i.
        text_embed: unit vectors.
        axis_name: mesh axis over which the batch is spread; None: the arguments are the whole batch.
        tile: texts compared at once, at least 1; None: all.
        ring: pass the texts from device to device instead of gathering them; see `softmax_contrastive`.

    Returns:
        A share in 0 to 1, float32.

    Raises:
        ValueError: a tile below 1, or a ring without an axis.
    """
    check_form(axis_name, tile, ring=ring)
    images, texts = image_embed.astype(jnp.float32), text_embed.astype(jnp.float32)
    own = jnp.arange(len(images)) + (0 if axis_name is None else jax.lax.axis_index(axis_name) * len(images))
    if not ring:
        texts = gather(texts, axis_name)
    # Where a text stands in the batch travels with it.
    place = own if ring else jnp.arange(len(texts))

    def visit(nearest: Any, block: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        texts, place = block

        def add_tile(across: Span, down: Span, nearest: tuple[Array, Array]) -> tuple[Array, Array]:
            similarity, text = (part(array, across) for array in nearest)
            products = part(images, across) @ part(texts, down).T
            best, best_text = products.max(axis=1), part(place, down)[products.argmax(axis=1)]
            # On a ring later texts may come first.
            better = (best > similarity) | ((best == similarity) & (best_text < text))
            similarity, text = jnp.where(better, best, similarity), jnp.where(better, best_text, text)
            return with_part(nearest[0], across, similarity), with_part(nearest[1], across, text)

        return over_tiles(add_tile, nearest, len(images), len(texts), tile), block

    nobody = jnp.full_like(images[:, 0], -jnp.inf), jnp.full_like(images[:, 0], jnp.iinfo(own.dtype).max, own.dtype)
    (_, nearest), _ = around_ring(visit, nobody, (texts, place), axis_name if ring else None)
    return jnp.mean(nearest == own, dtype=jnp.float32)
