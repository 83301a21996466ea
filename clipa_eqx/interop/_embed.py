"""Many pictures or texts through a tower, batch by batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from .._checks import check_at_least
from ..models import CLIP, normalize_pixels, scale_pixels


_T = TypeVar("_T")


def embed(
    function: Callable[[CLIP, Array], Array],
    model: CLIP,
    read: Callable[[list[_T]], np.ndarray],
    items: Iterable[_T],
    batch_size: int,
) -> Float32[np.ndarray, "items embed"]:
    """Batches padded to the first one's size; each result is fetched once the next batch is under way."""
    check_at_least("batch_size", batch_size, 1)
    done: list[Float32[np.ndarray, "rows embed"]] = []
    waiting: tuple[Array, int] | None = None
    size = 0
    for rows in _batches(items, batch_size):
        inputs = read(rows)
        size = size or len(inputs)
        padded = np.concatenate([inputs, np.zeros((size - len(inputs), *inputs.shape[1:]), inputs.dtype)])
        embeds = function(model, jax.numpy.asarray(padded))
        if waiting is not None:
            done.append(np.asarray(waiting[0], np.float32)[: waiting[1]])
        waiting = embeds, len(inputs)
    if waiting is None:
        raise ValueError("There is nothing to embed: give at least one image or text.")
    return np.concatenate([*done, np.asarray(waiting[0], np.float32)[: waiting[1]]])


def _batches(items: Iterable[_T], batch_size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while rows := list(itertools.islice(rest, batch_size)):
        yield rows


@eqx.filter_jit
def embed_pixels(model: CLIP, pixels: UInt8[Array, "rows height width 3"]) -> Float[Array, "rows embed"]:
    """Embed decoded pictures."""
    return jax.vmap(lambda image: model.encode_image(normalize_pixels(scale_pixels(image), model.config.vision)))(
        pixels
    )


@eqx.filter_jit
def embed_tokens(model: CLIP, tokens: Int[Array, "rows length"]) -> Float[Array, "rows embed"]:
    """Embed padded texts."""
    return jax.vmap(model.encode_text)(tokens)
